"""What a checkpoint file may be, and what each wrong one is told."""
import argparse
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import public
import pytest
import torch
from conftest import run
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rtseg_deploy import checkpoints, demo, inspection, saved
from rtseg_deploy.errors import RtsegError

DIALECTS = Path(__file__).parent / "dialects"


@pytest.fixture(scope="module")
def weights():
    return torch.load(demo.CHECKPOINT, weights_only=True)["segmenter"]


def load(value, tmp_path, **options):
    torch.save(value, tmp_path / "weights.pth", **options)
    return checkpoints.load(tmp_path / "weights.pth")


def test_network_dialect_and_classes_are_found(trained):
    assert (trained.network.name, trained.dialect.name, trained.classes) == ("sgcpnet", "official", 11)
    assert not trained.module.training


@pytest.mark.parametrize("container", saved.CONTAINERS)
@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "_orig_mod.module."])
def test_wrappers_and_prefixes(weights, container, prefix):
    state = {prefix + key.removeprefix("module."): value for key, value in weights.items()}
    found = saved.tensors({"epoch": 3, container: {**state, "loss.criterion.weight": torch.ones(19)}, "optimizer": {"state": {}}})
    assert found.state.keys() == {key.removeprefix("module.") for key in weights}
    assert found.containers == (container,) and found.beside == {"epoch": 3}


def test_a_bare_state_dict_half_precision_and_numpy_scalars_load(weights, tmp_path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    trained = load({"state_dict": half, "best": np.float64(0.7), "epoch": np.int64(3)}, tmp_path)
    assert trained.module.classifier.weight.dtype == torch.float32


def renamed(path, old, new):
    """The same file with a name in its pickle changed: what an older library wrote."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_scores_and_logs_beside_the_weights_load_whichever_numpy_wrote_them(weights, tmp_path, module):
    beside = {"best_mIoU": np.float64(0.7), "history": np.arange(3.0), "epoch": np.int64(3), "args": argparse.Namespace(lr=0.1), "folder": Path("runs")}
    torch.save({"state_dict": weights, **beside}, tmp_path / "weights.pth")
    renamed(tmp_path / "weights.pth", b"numpy._core.multiarray", module)
    assert checkpoints.load(tmp_path / "weights.pth").classes == 11


def test_the_old_file_format_loads(weights, tmp_path):
    assert load(weights, tmp_path, _use_new_zipfile_serialization=False).classes == 11


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_code_in_a_checkpoint_is_named_and_not_run(weights, tmp_path, options):
    with pytest.raises(RtsegError, match=r"asks to run \w+\.mkdir.*nothing of it was executed"):
        load({"segmenter": weights, "note": Attack(str(tmp_path / "attacked"))}, tmp_path, **options)
    assert not (tmp_path / "attacked").exists()


def test_a_plain_pickle_with_code_is_not_run(tmp_path):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Attack(str(tmp_path / "attacked")), protocol=2))
    with pytest.raises(RtsegError):
        checkpoints.load(tmp_path / "weights.pth")
    assert not (tmp_path / "attacked").exists()


def test_a_whole_module_is_refused_with_the_way_out(trained, tmp_path):
    with pytest.raises(RtsegError) as error:
        load(trained.module, tmp_path)
    assert "state_dict()" in error.value.fix


def test_a_torchscript_program_is_called_so(tmp_path):
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(tmp_path / "weights.pth")
    with pytest.raises(RtsegError, match="TorchScript"):
        checkpoints.load(tmp_path / "weights.pth")


def test_one_tensor_away_is_refused_by_name(weights, tmp_path):
    state = dict(weights)
    state["module.l1.0.kernel"] = state.pop("module.l1.0.weight")
    state["module.conv4.bias"] = torch.zeros(7)
    with pytest.raises(RtsegError) as error:
        load(state, tmp_path)
    assert "nearest is sgcpnet" in error.value.what
    assert "1 missing (here called backbone.stem.0.weight)" in error.value.what and "1 extra (l1.0.kernel)" in error.value.what
    assert "conv4.bias is 7, not 112" in error.value.what


def test_not_finite_is_refused_by_name(weights, tmp_path):
    state = {key: value.clone() for key, value in weights.items()}
    state["module.l2.bn1.bias"][3] = float("nan")
    with pytest.raises(RtsegError, match="l2.bn1.bias is not finite"):
        load(state, tmp_path)


@pytest.mark.parametrize("value", [{}, {"optimizer": {"state": {}, "param_groups": []}}, [1, 2], 3, {"state_dict": {}}])
def test_no_weights_in_it(value, tmp_path):
    with pytest.raises(RtsegError, match="no weights"):
        load(value, tmp_path)


def test_an_optimizers_file_is_called_so(tmp_path):
    network = torch.nn.Conv2d(1, 1, 1)
    for value in (torch.optim.Adam(network.parameters()).state_dict(), {"epoch": 1, "optimizer": torch.optim.SGD(network.parameters(), 0.1).state_dict()}):
        with pytest.raises(RtsegError, match="optimizer's state and no weights"):
            load(value, tmp_path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_and_are_told(weights, tmp_path, kind):
    state = {key: value.to(kind) if value.is_floating_point() else value for key, value in weights.items()}
    assert load(state, tmp_path).module.classifier.weight.dtype == torch.float32
    assert str(kind).removeprefix("torch.") in inspection.inspect(tmp_path / "weights.pth")["saved_as"]


def test_a_safetensors_file_loads_and_a_damaged_one_is_one_line(weights, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    assert checkpoints.load(path).classes == 11
    data = path.read_bytes()
    for damaged in (data[:1000], data[:-1000], b""):
        path.write_bytes(damaged)
        with pytest.raises(RtsegError, match="truncated"):
            checkpoints.load(path)


def test_heads_that_contradict_each_other_are_refused():
    value = public.checkpoint(DIALECTS / "ddrnet23_official.txt")
    fit = checkpoints.choose(checkpoints.fits(saved.tensors(value)))
    assert fit.classes == 19 and len(fit.dropped) == 13
    value = public.checkpoint(DIALECTS / "bisenetv1_r18_coincheung_c0422a1.txt")
    value["conv_out16.conv_out.weight"] = value["conv_out16.conv_out.weight"][:11]
    with pytest.raises(RtsegError, match=r"conv_out16.conv_out.weight is 11x64x1x1, not 19x64x1x1"):
        checkpoints.choose(checkpoints.fits(saved.tensors(value)))


def test_counters_may_be_missing_only_where_the_dialect_is_named():
    """PyTorch before 0.4.1 saved none, and neither did networks with InPlaceABN, whose activation is another."""
    value = public.checkpoint(DIALECTS / "bisenetv1_r18_coincheung_0471e80.txt")
    found = saved.tensors({key: tensor for key, tensor in value.items() if not key.endswith("num_batches_tracked")})
    with pytest.raises(RtsegError, match="InPlaceABN") as error:
        checkpoints.choose(checkpoints.fits(found))
    assert "--dialect coincheung-2020" in error.value.fix
    assert checkpoints.choose(checkpoints.fits(found, dialect="coincheung-2020")).network.name == "bisenetv1-r18"


@pytest.mark.parametrize("keys, words", [
    (["conv1.0.weight", "last_layer.conv1.weight", "linear.weight"], "DDRNet pre-trained on ImageNet"),
    (["conv1.weight", "fc.weight"], "network pre-trained on ImageNet"),
    (["bneck.0.conv1.weight", "linear3.weight"], "MobileNet V3 pre-trained"), (["model.diff3.0.weight", "model.layer5_d.0.conv1.weight"], "PIDNet"),
])
def test_lookalikes_are_called_what_they_are(keys, words, tmp_path):
    with pytest.raises(RtsegError, match=words):
        load({key: torch.zeros(1) for key in keys}, tmp_path)


def test_unknown_dialects_and_models_list_the_known_ones(weights):
    found = saved.tensors(weights)
    with pytest.raises(RtsegError) as error:
        checkpoints.fits(found, dialect="theirs")
    assert "official" in error.value.fix and "coincheung" in error.value.fix
    with pytest.raises(RtsegError, match="no public weights of sgcpnet-max5"):
        checkpoints.fits(found, "sgcpnet-max5")
    assert checkpoints.choose(checkpoints.fits(found, "bcpnet")).network.name == "bcpnet"


def test_inspect_says_what_a_file_is_and_how_near_an_unknown_one_comes(weights, tmp_path):
    found = inspection.inspect(demo.CHECKPOINT)
    assert (found["network"], found["dialect"], found["classes"], found["prefixes"], found["containers"]) == (
        "sgcpnet", "official", 11, ("module.",), ("segmenter",))
    torch.save({key: value for key, value in weights.items() if "l1.0" not in key}, tmp_path / "weights.pth")
    found = inspection.inspect(tmp_path / "weights.pth")
    assert found["network"] is None and found["nearest"][0]["network"] == "sgcpnet"
    assert found["nearest"][0]["differences"] == ["1 missing (here called backbone.stem.0.weight)"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2_000_000), noise=st.binary(max_size=64))
def test_damaged_files_are_one_line(cut, noise, tmp_path):
    data = demo.CHECKPOINT.read_bytes()
    path = tmp_path / "weights.pth"
    path.write_bytes(data[:cut] + noise)
    with pytest.raises(RtsegError):
        checkpoints.load(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(junk=b"r", head=b"")
@given(junk=st.binary(min_size=0, max_size=200), head=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."]))
def test_junk_is_one_line(junk, head, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(head + junk)
    with pytest.raises(RtsegError):
        checkpoints.load(path)


def test_no_such_file(tmp_path):
    with pytest.raises(RtsegError, match="No such file"):
        checkpoints.load(tmp_path / "none.pth")


def test_two_keys_for_one_tensor_are_refused(weights, tmp_path):
    state = {key.removeprefix("module."): value for key, value in weights.items()}
    state["stem.0.weight"] = torch.randn_like(state["l1.0.weight"])  # our own name for l1.0.weight
    with pytest.raises(RtsegError, match="1 extra"):
        load(state, tmp_path)


@pytest.mark.parametrize("change, words", [
    (lambda v: v.to(torch.complex64), "holds complex64"), (lambda v: v.to(torch.int32), "holds int32"), (lambda v: v.to_sparse(), "dense"),
])
def test_unusual_tensors_are_refused_by_name(weights, tmp_path, change, words):
    state = dict(weights)
    state["module.l1.0.weight"] = change(state["module.l1.0.weight"])
    with pytest.raises(RtsegError, match=f"l1.0.weight.*{words}"):
        load(state, tmp_path)


def test_a_variance_below_zero_is_refused(weights, tmp_path):
    state = {key: value.clone() for key, value in weights.items()}
    state["module.l1.1.running_var"][0] = -1
    with pytest.raises(RtsegError, match="variance below zero"):
        load(state, tmp_path)


def test_a_wrapper_that_holds_itself_ends():
    loop = {}
    loop["net"] = loop
    with pytest.raises(RtsegError, match="holds no weights"):
        saved.tensors(loop)


def test_what_lightning_and_averaging_add_is_no_weight(weights, tmp_path):
    bare = {key.removeprefix("module."): value for key, value in weights.items()}
    assert load({"state_dict": {**{f"model.{k}": v for k, v in bare.items()}, "loss_fn.weight": torch.ones(11)}}, tmp_path).classes == 11
    assert load({**weights, "n_averaged": torch.tensor(3)}, tmp_path).classes == 11


def test_lightnings_prefix_says_nothing_of_who_trained_it():
    value = public.checkpoint(DIALECTS / "ddrnet23s_sithu.txt")
    found = saved.tensors({"pytorch-lightning_version": "2.1", "state_dict": {f"model.{key}": tensor for key, tensor in value.items()}})
    with pytest.raises(RtsegError, match="trained with"):
        checkpoints.choose(checkpoints.fits(found))


def test_a_dialect_that_is_only_taken_when_asked_for_is_mentioned():
    found = saved.tensors(public.checkpoint(DIALECTS / "bisenetv2_coincheung_old_nearest.txt"))
    fit = checkpoints.choose(checkpoints.fits(found))
    assert fit.dialect.name == "coincheung-2020" and checkpoints.otherwise(fit) == ("coincheung-2020-nearest",)


def test_one_foreign_key_leaves_the_right_network_the_nearest(weights):
    found = saved.tensors({**{key.removeprefix("module."): value for key, value in weights.items()}, "extra.weight": torch.ones(3)})
    with pytest.raises(RtsegError, match=r"nearest is sgcpnet .*1 extra \(extra.weight\)"):
        checkpoints.choose(checkpoints.fits(found), "f", found)
    other = saved.tensors({"a.b": torch.ones(3)})
    with pytest.raises(RtsegError, match="shares no tensor"):
        checkpoints.choose(checkpoints.fits(other), "f", other)


def test_weights_elsewhere_are_pointed_at(weights, tmp_path):
    with pytest.raises(RtsegError, match="tensors under ema"):
        load({"ema": weights, "epoch": 3}, tmp_path)


def test_names_in_a_file_do_not_steer_the_terminal(weights, tmp_path):
    torch.save({"state_dict": {**weights, "module.\x1b[31mred": torch.ones(1)}, "arch": "\x1b[31mred"}, tmp_path / "weights.pth")
    out, err = run("inspect", tmp_path / "weights.pth", status=1)
    assert "?[31mred" in out and "\x1b" not in out + err
