"""Draw docs/estimate.png: what the papers measured beside what is estimated for it. Needs the extra `plot`.

    python docs/draw_estimate.py
"""
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (it asks which backend when it loads)

from rtseg_deploy.estimate import ESTIMATE, counted, papers  # noqa: E402

rows = papers(lambda step, done: print(step))
devices = list(dict.fromkeys(row["device"] for row in rows))
colours = dict(zip(devices, plt.get_cmap("tab10").colors))
figure, axes = plt.subplots(figsize=(11, 17))
for place, row in enumerate(rows):
    colour = colours[row["device"]]
    axes.plot([row["optimistic ms"], row["pessimistic ms"]], [place, place], color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
    axes.plot(row["measured ms"], place, marker="o" if row["verdict"] == "inside" else "D", color=colour, markersize=6, markeredgecolor="black")
for device in devices:
    axes.plot([], [], color=colours[device], linewidth=6, alpha=0.35, label=device)
axes.plot([], [], "o", color="white", markeredgecolor="black", label="measured, inside the bracket")
axes.plot([], [], "D", color="white", markeredgecolor="black", label="measured, outside")
axes.set_yticks(range(len(rows)), [f"{row['figure']}   {row['network']}" for row in rows], fontsize=8)
axes.set_ylim(len(rows) - 0.4, -0.6)
axes.set_xscale("log")
axes.set_xticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1000"])
axes.set_xlabel("milliseconds, FP32, one image; bar: from the optimistic to the pessimistic end")
axes.grid(axis="x", which="both", alpha=0.25)
axes.set_axisbelow(True)
axes.legend(loc="lower right", fontsize=9)
axes.set_title(f"{counted(rows)}\n{ESTIMATE}", fontsize=9, loc="left")
figure.savefig(Path(__file__).with_name("estimate.png"), dpi=90, bbox_inches="tight", metadata={"Software": None})
