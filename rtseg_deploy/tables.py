"""A paper's table with our figures in it, for whatever shows it."""
NOT_MEASURED = "not measured here"
COLUMNS = 2                         # as many columns of speed get one of ours each; of more, a row gets a line of ours


def laid_out(table, ours, why_not):
    """(headings, rows of texts, footnotes) of a facts.tables.PaperTable: each speed that is the paper's own has ours beside it or below it.

    ours: id of a figure -> text, in the unit that the paper prints (FPS where it prints both); why_not: id -> why it was not measured.
    """
    footnotes = {}                  # sentence -> its mark
    said = [[marked(cell.text, cell.footnotes, footnotes) for cell in row] for row in table.rows]
    places = [own_speeds(row) for row in table.rows]
    columns = sorted({column for found in places for column in found})
    if len(columns) <= COLUMNS:
        headings, rows = in_columns(table.headings, said, places, columns, ours, why_not)
    else:
        headings, rows = list(table.headings), in_lines(said, places, ours, why_not, footnotes)
    return headings, rows, [f"{mark} {sentence}" for sentence, mark in footnotes.items()] + list(table.notes)


def marked(text, sentences, footnotes):
    """The text with the marks of its footnotes, which are added where they are new."""
    return " ".join([text, *(footnotes.setdefault(sentence, f"[{len(footnotes) + 1}]") for sentence in sentences)])


def own_speeds(row):
    """Column -> id of the figure that the paper prints there of its own network; of FPS and milliseconds, FPS."""
    as_fps = {cell.figure for cell in row if cell.column == "fps"}
    return {n: cell.figure for n, cell in enumerate(row) if cell.figure and (cell.column == "fps" or cell.figure not in as_fps)}


def in_columns(headings, said, places, columns, ours, why_not):
    """With a column of ours after each of those columns."""
    def widened(texts, added):
        return [text for n, one in enumerate(texts) for text in ([one, added(n)] if n in columns else [one])]

    rows = [widened(texts, lambda n, found=found: ours.get(found[n]) or reason(found[n], why_not) if n in found else "")
            for texts, found in zip(said, places)]
    return widened(headings, lambda n: f"{headings[n]}, ours"), rows


def in_lines(said, places, ours, why_not, footnotes):
    """With a line of ours after each row that has own speeds; a reason that is good for all of them is said once."""
    rows = []
    for texts, found in zip(said, places):
        rows.append(texts)
        if not found:
            continue
        reasons = {reason(figure, why_not) for figure in found.values() if figure not in ours}
        alike = len(reasons) == 1 and not any(figure in ours for figure in found.values())
        line = [f"ours: {reasons.pop()}" if alike else "ours", *[""] * (len(texts) - 1)]
        for n, figure in found.items():
            if not alike:
                line[n] = ours.get(figure) or marked(NOT_MEASURED, [why_not[figure]] if figure in why_not else [], footnotes)
        rows.append(line)
    return rows


def reason(figure, why_not):
    return ": ".join(filter(None, (NOT_MEASURED, why_not.get(figure))))
