"""A benchmark record with known figures, made without running anything."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from edgekd.contracts.artifacts import sha256_bytes
from edgekd.report.checks import Evidence, check_power, run_checks
from edgekd.report.latency import LatencySummary
from edgekd.report.power import PowerRecord
from edgekd.report.record import (
    Asked,
    BenchmarkRecord,
    BundleIdentity,
    Clock,
    Disturbance,
    EngineWindow,
    Golden,
    InputUsed,
    Machine,
    Ratio,
    SceneRun,
    SceneWindow,
    WarmUp,
)
from edgekd.telemetry.environment import read_environment
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.state import read_state

TILE_PX = 1000


def make_evidence(latencies_s: list[float] | None = None, **changes: Any) -> Evidence:
    """Evidence of a flawless measurement: 60 calls of 50 ms in three blocks, three runs of 2 s.

    The tile is 1000 px, the input 2000² px in 5 windows. ``changes`` replaces parts.
    """
    latencies = [0.05] * 60 if latencies_s is None else latencies_s
    starts = [sum(latencies[:index]) for index in range(len(latencies))]
    engine = make_engine(latencies, starts, [len(latencies)])
    parts: dict[str, Any] = {
        "asked": Asked(duration_s=2.0, warmup_s=1.0, repeats=3),
        "warm_up": WarmUp(
            total_s=1, iterations=20, steady=True, detail="steady", latencies_s=[0.05] * 20
        ),
        "engine": engine,
        "scene": make_scene([2.0, 2.0, 2.0]),
        "disturbance": Disturbance(
            other_cpu_share=0.01,
            load_1min_before=0.5,
            load_1min_after=1.5,
            frequency_mhz=[2000.0, 2000.0, 1990.0],
            absent={},
        ),
        "machine": make_machine(),
        "clock": Clock(tick_s=1e-9, monotonic=True),
        "target": "x86-cpu",
        "target_arch": "x86_64",
        "arch": "x86_64",
        "golden": make_golden(1e-5),
    }
    return Evidence(**(parts | changes))


def decide(monkeypatch: pytest.MonkeyPatch, evidence: Evidence | None = None) -> None:
    """Lets a test decide the verdicts of what is measured: this machine may be busy."""
    from edgekd.report import checks, measure

    found = run_checks(evidence or make_evidence())
    for module in (measure, checks):
        monkeypatch.setattr(module, "run_checks", lambda _: list(found))


def make_golden(error: float | None) -> Golden:
    """Outputs that differ by so much where 0.001 is allowed."""
    return Golden(error_logits=error, bound_logits=1e-3)


def make_machine(**found: list[str]) -> Machine:
    """A machine on which nothing happened, but for what is given by check."""
    state = read_state(Path("/nonexistent"))
    nothing: dict[str, list[str]] = {"throttled": [], "mode_changed": [], "clocks_changed": []}
    return Machine(before=state, after=state, found=nothing | found)


def make_engine(latencies_s: list[float], starts_s: list[float], blocks: list[int]) -> EngineWindow:
    """Calls of the bare engine."""
    summary = LatencySummary.of(latencies_s)
    return EngineWindow(
        tiles=1,
        duration_s=sum(latencies_s),
        block_n=blocks,
        starts_s=starts_s,
        latencies_s=latencies_s,
        summary=summary,
        tiles_per_s=1 / summary.mean_s,
        mpx_per_s=TILE_PX**2 / 1e6 / summary.mean_s,
    )


def make_scene(times_s: list[float]) -> SceneWindow:
    """Runs over 4 Mpx in 5 windows of 1 Mpx."""
    total_s = statistics.median(times_s)
    return SceneWindow(
        what="Session.run_scene",
        runs=[
            SceneRun(start_s=10.0 * index, total_s=time_s, infer_s=0.25)
            for index, time_s in enumerate(times_s)
        ],
        pixels_unique=4_000_000,
        windows_run=5,
        windows_skipped=1,
        overlap_px=100,
        total_s=total_s,
        unique_mpx_per_s=4 / total_s,
        tiles_per_s=5 / total_s,
        streams=1,
        engine_share=0.125,
    )


def make_record(
    evidence: Evidence | None = None,
    name: str = "tiny",
    quality: dict[str, Any] | None = None,
    root: Path = Path("/nonexistent"),
    power: PowerRecord | PowerUnavailable | None = None,
) -> BenchmarkRecord:
    """A record of ``evidence`` as ``measure`` would write it; the device is nameless."""
    evidence = evidence or make_evidence()
    power = power or PowerUnavailable(reason="no sensor in a test", sensors={"null": "nothing"})
    checks = run_checks(evidence)
    checks += check_power(power, evidence.asked)
    ratio = evidence.scene.unique_mpx_per_s / evidence.engine.mpx_per_s
    digest = sha256_bytes(name.encode())
    return BenchmarkRecord(
        created_utc="2026-01-02T03:04:05+00:00",
        asked=evidence.asked,
        bundle=BundleIdentity(
            name=name,
            title="a test",
            model_sha256=digest,
            recipe_sha256=digest,
            checkpoint_sha256=digest,
            data_name="none",
            student="tiny",
            precision="fp32",
            precision_asked=["fp32", "int8"],
            target=evidence.target,
            target_arch=evidence.target_arch,
            backend={"backend": "onnxrt"},
            tile_px=TILE_PX,
            stride_px=4,
            overlap_px=100,
            classes=["background", "canopy"],
            gates={"parity": True},
            built_utc="2026-01-01T00:00:00Z",
        ),
        environment=read_environment(root).model_copy(update={"arch": evidence.arch}),
        input=InputUsed(
            kind="file",
            name="scene.tif",
            width_px=2000,
            height_px=2000,
            bands=[1, 2, 3],
            sha256=digest,
        ),
        warm_up=evidence.warm_up,
        engine=evidence.engine,
        engine_streams=None,
        scene=evidence.scene,
        ratio=Ratio(
            definition="scene over engine",
            end_to_end_over_engine=ratio,
            end_to_end_over_streams=None,
            redundancy=1.25,
            tiles_over_engine=ratio * 1.25,
        ),
        disturbance=evidence.disturbance,
        golden=evidence.golden,
        clock=evidence.clock,
        peak_rss_mib=123.4,
        power=power,
        machine=evidence.machine,
        checks=checks,
        valid=all(check.status != "fail" for check in checks),
        quality=quality,
    )
