"""benchmarks/verified.py on linear networks, of which the largest margin in a box is known in closed form."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parents[1]
SIZE, LABEL = 784, 1
RNG = np.random.default_rng(0)
WEIGHTS = (RNG.normal(size=(SIZE, 3)) / 30).astype(np.float32)
BIASES = np.array([-6.0, 0.26, 0.2], np.float32)  # so that only class 2 comes near
CENTRE = RNG.uniform(0.2, 0.8, SIZE)
HALF = RNG.uniform(0.5, 1.0, SIZE)  # of the box's width in each pixel, in units of its radius


@pytest.fixture(scope="module")
def verified():
    spec = importlib.util.spec_from_file_location("verified", HERE / "benchmarks" / "verified.py")
    module = sys.modules["verified"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["verified"]


def largest_margin(radius):
    slopes = np.delete(WEIGHTS - WEIGHTS[:, [LABEL]], LABEL, axis=1).astype(float)
    gaps = np.delete(BIASES - BIASES[LABEL], LABEL)
    return np.max(CENTRE @ slopes + gaps + radius * HALF @ np.abs(slopes))


def write_property(path, radius):
    lines = [f"(declare-const {name}_{i} Real)" for name, count in (("X", SIZE), ("Y", 3)) for i in range(count)]
    for i, (middle, half) in enumerate(zip(CENTRE, radius * HALF, strict=True)):
        lines += [f"(assert (<= X_{i} {middle + half}))", f"(assert (>= X_{i} {middle - half}))"]
    lines.append(f"(assert (or (and (>= Y_0 Y_{LABEL}))\n    (and (>= Y_2 Y_{LABEL}))))  ; another class")
    path.write_text("; a property\n" + "\n".join(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from onnx import TensorProto, helper, numpy_helper, save

    folder = tmp_path_factory.mktemp("data") / "linear"
    folder.mkdir()
    arrays = [numpy_helper.from_array(array, name) for name, array in (("w", WEIGHTS), ("b", BIASES))]
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Gemm", ["flat", "w", "b"], ["y"])]
    shapes = {"x": [1, SIZE, 1], "y": [1, 3]}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(nodes, "linear", [x], [y], arrays), opset_imports=opset, ir_version=8)
    save(model, folder / "linear.onnx")
    rows = ["network,property,verdict"]
    for radius in (0.01, 0.1):
        write_property(folder / f"prop_{radius}.vnnlib", radius)
        truth = "sat" if largest_margin(radius) >= 0 else "unsat"
        rows.append(f"linear.onnx,prop_{radius}.vnnlib,{truth}")
    (folder / "truth.csv").write_text("\n".join(rows))
    return folder


def test_margins_are_those_in_closed_form_and_the_same_command_goes_on(verified, folder, tmp_path, monkeypatch, capsys):
    assert largest_margin(0.01) < -0.01 and largest_margin(0.1) > 0.01
    fewer = {"num_restarts": 2, "num_steps": 30}
    names = {name: verified.partial(verified.ATTACKS[name], **fewer) for name in ("apgd-dlr", "pgd-widened")}
    monkeypatch.setattr(verified, "ATTACKS", names)
    monkeypatch.setattr(verified.process, "keep_compiled", lambda: None)
    output = tmp_path / "verified.json"

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["verified.py", f"--data={folder.parent}", f"--output={output}", *options])
        verified.main()
        return json.loads(output.read_text())

    first = run("--attacks=apgd-dlr")
    record = run("--attacks=apgd-dlr,pgd-widened")["linear/linear"]
    assert record["apgd-dlr"] == first["linear/linear"]["apgd-dlr"]
    assert record["truth"] == {"prop_0.01": "unsat", "prop_0.1": "sat"}
    for name in names:
        for property, radius in (("prop_0.01", 0.01), ("prop_0.1", 0.1)):
            np.testing.assert_allclose(record[name]["margins"][property], largest_margin(radius), rtol=2e-2)
    printed = capsys.readouterr().out
    assert "| linear/linear | sat | 1 | 1 | 1 | 1 |" in printed and "WRONG" not in printed
    assert str(tmp_path) not in output.read_text()


def test_what_breaks_a_proof_or_is_missed_is_named(verified):
    margins = {"a": 0.1, "b": -0.1}
    record = {"truth": {"a": "unsat", "b": "sat"}, "pgd": {"seconds": 1, "margins": margins}}
    table = verified.table({"network": record})
    assert "- WRONG: network a is unsat" in table and "- not found: network b" in table


def test_bounds_are_rounded_into_the_box(verified):
    low, high = np.array([0.1, 0.5]), np.array([0.3, 0.5])
    small, large = verified.inner(low, high)
    assert small.dtype == large.dtype == np.float32 and small[1] == large[1] == 0.5
    assert np.all(small >= low) and np.all(large <= high)
    next_to = np.nextafter([small[0], large[0]], np.array([0, 1], np.float32)).astype(float)
    assert next_to[0] < low[0] and next_to[1] > high[0]


@pytest.mark.parametrize("change", [("(assert (<= X_5 ", "(assert (<= X_4 "), ("(>= Y_2 Y_1)", "(>= Y_2 Y_0)")])
def test_other_properties_are_refused(verified, folder, tmp_path, change):
    text = (folder / "prop_0.1.vnnlib").read_text()
    assert change[0] in text
    (tmp_path / "other.vnnlib").write_text(text.replace(*change))
    with pytest.raises(ValueError, match="hold nothing else"):
        verified.read_property(tmp_path / "other.vnnlib")
