"""Each rule finds the graph that is wrong in its way, names the node, and nothing else is found."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx
import pytest
from onnx import TensorProto

from edgekd.contracts.target import load_target, target_names
from edgekd.deploy.check import rules, rules_onnxrt, tables
from edgekd.deploy.check.graph import read_graph
from edgekd.deploy.check.report import Finding
from edgekd.deploy.check.rules import Context
from tests.deploy.check.graphs import CASES, ORIN, Case, _quantized, good
from tests.helpers.onnx_graphs import save

RULES = [*rules.RULES, *rules_onnxrt.RULES]


def found(
    model: onnx.ModelProto,
    folder: Path,
    target: str,
    version: str | None = None,
    precision: Literal["fp32", "fp16"] | None = None,
) -> list[Finding]:
    declared = load_target(target)
    text = version or declared.tensorrt or declared.onnxruntime
    assert text is not None
    context = Context(declared, tables.parse_version(text), precision)
    return rules.apply(RULES, read_graph(save(model, folder / "m.onnx")), context)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_rule(case: Case, tmp_path: Path) -> None:
    findings = found(case.build(), tmp_path, case.target, case.version, case.precision)
    mine = [item for item in findings if item.rule == case.rule and item.severity == case.severity]
    assert mine, findings
    line = mine[0].line()
    for word in case.words:
        assert word in line, line
    assert line.startswith(case.severity) and "\n" not in line
    assert mine[0].fix and mine[0].source
    for other in case.fine:
        version = None if other in target_names() else other
        target = other if version is None else case.target
        rest = found(case.build(), tmp_path, target, version, case.precision)
        assert case.rule not in {item.rule for item in rest}, (other, rest)


def test_every_rule_has_a_case() -> None:
    ids = [rule.id for rule in RULES]
    assert len(set(ids)) == len(ids) == 29
    assert {case.rule for case in CASES} == set(ids) - {"external-data"}  # has tests of its own
    assert len({case.name for case in CASES}) == len(CASES) >= 45


@pytest.mark.parametrize("version", ["8.6", "10.0", "10.3", "10.13", "11.0", "11.4"])
def test_what_is_right_is_found_right(version: str, tmp_path: Path) -> None:
    """Otherwise a rule that always finds something would pass."""
    assert found(good(TensorProto.FLOAT16), tmp_path, ORIN, version) == []
    findings = found(good(), tmp_path, ORIN, version, "fp32")
    assert {(item.rule, item.severity) for item in findings} == {("attention.fp32", "warning")}
    assert found(_quantized()(), tmp_path, ORIN, version) == []
    if version != "8.6":
        assert found(_quantized(20, TensorProto.FLOAT16)(), tmp_path, ORIN, version) == []


@pytest.mark.parametrize("target", [name for name in target_names() if "orin" not in name])
def test_what_is_right_for_a_cpu(target: str, tmp_path: Path) -> None:
    assert found(good(), tmp_path, target) == []
    rest = {item.severity for item in found(_quantized(high=63)(), tmp_path, target)}
    assert rest <= {"warning"}


def test_findings_name_their_nodes_once(tmp_path: Path) -> None:
    finding = found(_quantized(zero=3)(), tmp_path, ORIN)[0]
    assert finding.nodes == ["in.q", "in.dq"]
    assert finding.line().startswith("error   qdq.zero-point  in.q and 1 more: a zero point is not")


def test_operator_tables_do_not_contradict_each_other() -> None:
    assert not tables.BASE & set(tables.SINCE)
    assert not tables.SOMEWHERE & (tables.BASE | set(tables.SINCE))
    known = {item.name for item in onnx.defs.get_all_schemas_with_history() if not item.domain}
    old = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}  # experimental, gone from ONNX
    assert (tables.BASE | set(tables.SINCE) | tables.SOMEWHERE) - old <= known
    from tests.deploy.test_export import ALLOWED  # what students consist of

    assert ALLOWED - {"LayerNormalization"} <= tables.BASE


@pytest.mark.parametrize(
    ("version", "bounds"),
    [
        ((8, 4), (17, 17)), ((8, 6), (17, 17)), ((9, 3), (17, 17)), ((10, 0), (20, 20)),
        ((10, 3), (20, 20)), ((10, 7), (20, 24)), ((10, 14), (20, 24)), ((10, 15), (24, 24)),
        ((11, 0), (25, 25)), ((11, 4), (25, 25)),
    ],
)  # fmt: skip
def test_opset_bounds(version: tables.Version, bounds: tuple[int, int]) -> None:
    assert tables.opset_bounds(version) == bounds


@pytest.mark.parametrize("text", ["10", "ten.three", "", "10.x", "-8.6"])
def test_versions_are_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="expected a version like"):
        tables.parse_version(text)


def test_external_data(tmp_path: Path) -> None:
    model = good()
    onnx.save(
        model,
        str(tmp_path / "m.onnx"),
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    context = Context(load_target(ORIN), (10, 3))

    def reasons() -> list[str]:
        findings = rules.apply(rules.RULES, read_graph(tmp_path / "m.onnx"), context)
        return [item.reason for item in findings if item.rule == "external-data"]

    assert reasons() == []
    content = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(content[:100])
    assert reasons() and all("m.data, which is cut: 100 bytes" in text for text in reasons())
    (tmp_path / "m.data").unlink()
    assert reasons() == ["its values lie in m.data, which is not beside the model"]
