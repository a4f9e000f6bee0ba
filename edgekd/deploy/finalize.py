"""From a portable bundle to a finished one, on the board that will run it.

Every precision that the bundle holds for this board's TensorRT is built, compared with the golden
outputs of FP32, and timed, all in one run; the fastest that keeps its bounds is sealed into the
bundle. Needs neither torch nor onnx.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgekd.contracts.artifacts import publish_folder, sha256_bytes, sha256_file
from edgekd.contracts.manifest import (
    MANIFEST_NAME,
    EngineDone,
    EngineTrial,
    Gate,
    Machine,
    Manifest,
    PortableModel,
    trial_row,
)
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.target import load_target
from edgekd.contracts.trust import SIGNATURE_NAME, Requirement
from edgekd.deploy.builders.trt import MODEL_NAME, BuildOptions, Plan, Say, build_plan
from edgekd.deploy.parity import FloatArray
from edgekd.errors import BundleError, EnvironmentLacksError, GateError, InputError
from edgekd.runtime.backends.trt import Api, Device, TensorRtBackend, open_api, read_machine
from edgekd.runtime.bundle import Bundle, open_bundle, sealed_json

LAYERS_NAME, CACHE_NAME = "engine-layers.json", "timing.cache"
#: names of the gates that finalize adds
AGREEMENT_GATE, DIFFERENCE_GATE = "engine_agreement_with_fp32", "engine_vs_fp32"
#: of the GPU's memory, what the builder may use for scratch; a Jetson shares it with the system
WORKSPACE_SHARE = 1 / 4
WARM_UP_RUNS = 3
_MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """How to finalise.

    Attributes:
        precision: build this one alone; None is every one that the bundle holds.
        typing: how TensorRT learns precisions; None is flags where the version has them and the
            types of the graph elsewhere.
        any_device: build on another class of device than the target.
        batch_max: largest batch of the engine.
        workspace_mib: bound of the builder's scratch memory; None is a quarter of the GPU's.
        dla_core: deep learning accelerator to use; None is the GPU alone.
        timing_cache: file with measured tactics, used and updated; None keeps them in the bundle.
        runs: timed runs of each engine.
    """

    precision: str | None = None
    typing: Literal["flags", "graph"] | None = None
    any_device: bool = False
    batch_max: int = 1
    workspace_mib: int | None = None
    dla_core: int | None = None
    timing_cache: Path | None = None
    runs: int = 30


@dataclass(frozen=True)
class _Built:
    model: PortableModel
    plan: Plan
    backend: TensorRtBackend


@dataclass(frozen=True)
class _Golden:
    """Normalised inputs ``(1, C, H, W)`` and FP32's logits ``(1, K, h, w)``."""

    tensors: list[FloatArray]
    logits: list[FloatArray]


def finalize(
    bundle: Path,
    out: Path | None = None,
    required: Iterable[Requirement] = (),
    options: Options | None = None,
    say: Say = lambda text: None,
) -> Manifest:
    """Build the engine of a portable bundle, or build it again after TensorRT or board changed.

    Args:
        bundle: made by ``edgekd build`` for a target with TensorRT.
        out: the finished bundle; in place of the portable one by default. Either way it appears
            when it is whole.
        required: who must have signed the bundle. The finished bundle has another manifest and is
            not signed any more.
        options: how.
        say: called with a line for every step.

    Raises:
        BundleError: damaged, or not of a target with TensorRT.
        TrustError: not signed as required.
        GateError: no engine keeps the bounds; the message holds what each did.
        EnvironmentLacksError: no TensorRT, no GPU, or a TensorRT for which it holds no file.
    """
    options = options or Options()
    opened = open_bundle(bundle, required)
    manifest = opened.manifest
    if not manifest.portable:
        raise InputError(
            f"{bundle} runs with ONNX Runtime, which needs no engine; it is ready: edgekd run "
            f"{bundle} SCENE.tif -o map.tif"
        )
    opened.check_files()
    api, device = open_api(), Device()
    try:
        machine = read_machine(api, device)
        _require_target(bundle, manifest, machine, options.any_device)
        if manifest.engine is not None:
            changes = manifest.engine.machine.changes(machine)
            say(f"built before: {'; '.join(changes) if changes else 'on this very machine'}")
        models = _chosen(bundle, manifest, api, options)
        workspace = options.workspace_mib or int(device.memory_bytes * WORKSPACE_SHARE) // _MIB
        golden = _golden(opened)
        with device.current():
            built, trials, cache = _build_all(opened, api, machine, models, options, workspace, say)
        try:
            best, trials = _compare(built, trials, golden, options.runs, say)
            layers = best.backend.inspect()
        finally:
            for item in built:
                item.backend.close()
    finally:
        device.close()
    target = out or bundle
    with publish_folder(target, MANIFEST_NAME) as folder:
        for name in manifest.files:
            if name not in (MODEL_NAME, LAYERS_NAME, CACHE_NAME):
                _same_file(bundle / name, folder / name)
        (folder / MODEL_NAME).write_bytes(best.plan.content)
        if layers is not None:
            (folder / LAYERS_NAME).write_text(layers, encoding="utf-8")
        if cache:
            (folder / CACHE_NAME).write_bytes(cache)
        engine = EngineDone(
            file=MODEL_NAME,
            precision=best.model.precision,
            typing=best.model.typing,
            source=best.model.file,
            layers=None if layers is None else LAYERS_NAME,
            timing_cache=CACHE_NAME if cache else None,
            machine=machine,
            workspace_mib=workspace,
            dla_core=options.dla_core,
            built_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            trials=trials,
            portable_sha256=sha256_bytes(opened.content),
            portable_signer=None if opened.signer is None else opened.signer.key_id,
        )
        finished = _finished(manifest, best.model, engine, trials, folder)
        (folder / MANIFEST_NAME).write_text(sealed_json(finished.plain()), encoding="utf-8")
        say("load the bundle and run its golden inputs")
        _verify(folder, options.any_device)
        if (bundle / SIGNATURE_NAME).exists():
            say("the manifest changed, so the signature of the portable bundle is gone: sign anew")
    if options.timing_cache is not None and cache:
        _keep(options.timing_cache, cache)
    return finished


def _require_target(bundle: Path, manifest: Manifest, machine: Machine, any_device: bool) -> None:
    """Raise unless this is the class of device that the bundle is for."""
    target = load_target(manifest.target.name)
    here = platform.machine()
    fits = here == target.arch and machine.compute_capability == target.compute_capability
    if not fits and not any_device:
        raise BundleError(
            f"{bundle} is for {target.name} ({target.arch}, compute capability "
            f"{target.compute_capability}), and this is {here} with {machine.gpu} "
            f"({machine.compute_capability}); finalise it there, or add --any-device to build it "
            "here all the same (its times then say nothing about the target)"
        )


def _chosen(bundle: Path, manifest: Manifest, api: Api, options: Options) -> list[PortableModel]:
    typing = options.typing or ("flags" if api.weak else "graph")
    suited = [
        item for item in manifest.portable if item.suits(api.version) and item.typing == typing
    ]
    if not suited:
        spans = sorted(
            {f"{m.typing} {m.tensorrt_from} to below {m.tensorrt_below}" for m in manifest.portable}
        )
        raise EnvironmentLacksError(
            f"{bundle} holds nothing that TensorRT {api.text} builds with {typing} "
            f"(it holds: {', '.join(spans)}); update JetPack, or choose another --typing"
        )
    if options.precision is None:
        return suited
    found = [item for item in suited if item.precision == options.precision]
    if not found:
        raise InputError(
            f"{bundle} holds no {options.precision} (it holds "
            f"{', '.join(item.precision for item in suited)}): it was not allowed or did not keep "
            "its gates; see edgekd inspect"
        )
    return found


def _build_all(
    opened: Bundle,
    api: Api,
    machine: Machine,
    models: Sequence[PortableModel],
    options: Options,
    workspace_mib: int,
    say: Say,
) -> tuple[list[_Built], list[EngineTrial], bytes]:
    """Engines that could be built and loaded, trials of those that could not, timing cache."""
    cache = _cache(opened, options)
    built: list[_Built] = []
    trials: list[EngineTrial] = []
    try:
        for model in models:
            say(f"build {model.precision} from {model.file} with TensorRT {api.text}")
            try:
                plan = build_plan(
                    api,
                    opened.file(model.file).read(),
                    model,
                    BuildOptions(workspace_mib, options.batch_max, options.dla_core, cache),
                    lambda text: say(f"  {text}"),
                )
                backend = TensorRtBackend(plan.content, machine)
            except GateError as err:
                say(f"{model.precision} refused: {err}")
                trials.append(_trial(model, None, str(err)))
                continue
            cache = plan.timing_cache or cache
            for line in plan.warnings[:8]:
                say(f"  warning: {line}")
            say(f"  {len(plan.content) / 1e6:.1f} MB in {plan.seconds:.0f} s")
            built.append(_Built(model, plan, backend))
        if not built:
            raise GateError(f"no engine could be built: {_table(trials)}")
    except BaseException:
        for item in built:
            item.backend.close()
        raise
    return built, trials, cache


def _compare(
    built: Sequence[_Built],
    refused: Sequence[EngineTrial],
    golden: _Golden,
    runs: int,
    say: Say,
) -> tuple[_Built, list[EngineTrial]]:
    """The fastest engine that keeps its bounds, and what each did.

    Raises:
        GateError: none keeps them.
    """
    seconds = _times([item.backend for item in built], golden.tensors[0], runs)
    trials: list[EngineTrial] = []
    passing: list[tuple[float, int]] = []
    for number, item in enumerate(built):
        worst, same = _beside(item.backend, golden)
        model = item.model
        holds = same >= model.golden_agreement_min and worst <= model.golden_atol
        said = (
            f"golden agreement {100 * same:.2f} % (at least {100 * model.golden_agreement_min:.2f}"
            f" %), logits within {worst:.3g} (at most {model.golden_atol:.3g})"
        )
        if holds:
            passing.append((seconds[number], number))
        trials.append(
            EngineTrial(
                precision=model.precision,
                typing=model.typing,
                source=model.file,
                plan_bytes=len(item.plan.content),
                build_s=item.plan.seconds,
                tile_s=seconds[number],
                agreement=same,
                max_abs=worst if np.isfinite(worst) else None,
                fused_attention=_fused(item.backend.inspect()),
                chosen=False,
                why=said if holds else f"fails: {said}",
            )
        )
    if not passing:
        raise GateError(f"no engine keeps the bundle's bounds: {_table([*refused, *trials])}")
    fastest, best = min(passing)
    for number, trial in enumerate(trials):
        chosen = number == best
        late = f"; slower than {built[best].model.precision}" if trial.tile_s > fastest else ""
        trials[number] = trial.model_copy(
            update={"chosen": chosen, "why": trial.why + ("; the fastest" if chosen else late)}
        )
    for trial in trials:
        say(trial_row(trial))
    return built[best], [*trials, *refused]


def _times(backends: Sequence[TensorRtBackend], tensor: FloatArray, runs: int) -> list[float]:
    """Median seconds of a tile for each engine, run in turn: A B A B."""
    times: list[list[float]] = [[] for _ in backends]
    for number in range(WARM_UP_RUNS + runs):
        for backend, mine in zip(backends, times, strict=True):
            name = next(iter(backend.input_shapes))
            start = time.perf_counter()
            backend.infer({name: tensor})
            if number >= WARM_UP_RUNS:
                mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in times]


def _beside(backend: TensorRtBackend, golden: _Golden) -> tuple[float, float]:
    """Largest difference of a golden logit to FP32, and part of the cells with its class."""
    name, output = next(iter(backend.input_shapes)), next(iter(backend.output_shapes))
    worst, same, cells = 0.0, 0, 0
    for tensor, want in zip(golden.tensors, golden.logits, strict=True):
        have = backend.infer({name: tensor})[output]
        if have.shape != want.shape:
            raise BundleError(f"the engine gives {have.shape}, the golden outputs are {want.shape}")
        difference = float(np.abs(have.astype(np.float64) - want).max())
        worst = max(worst, difference) if np.isfinite(difference) else np.inf
        same += int((have.argmax(1) == want.argmax(1)).sum()) if np.isfinite(difference) else 0
        cells += want[:, 0].size
    return worst, same / cells


def _golden(opened: Bundle) -> _Golden:
    manifest = opened.manifest
    normalize = Normalizer(manifest.inputs[0])
    output = manifest.outputs[0].name
    with np.load(io.BytesIO(opened.file(manifest.golden.file).read())) as arrays:
        count = manifest.golden.count
        return _Golden(
            [normalize(arrays[f"image_{n}"])[None] for n in range(count)],
            [arrays[f"{output}_{n}"][None] for n in range(count)],
        )


def _fused(layers: str | None) -> int | None:
    """Kernels of the engine whose name or tactic says fused attention."""
    if layers is None:
        return None
    try:
        found = json.loads(layers).get("Layers", [])
    except (ValueError, AttributeError):
        return None
    return sum("mha" in json.dumps(item).lower() for item in found)


def _trial(model: PortableModel, plan: Plan | None, why: str) -> EngineTrial:
    return EngineTrial(
        precision=model.precision,
        typing=model.typing,
        source=model.file,
        plan_bytes=0 if plan is None else len(plan.content),
        build_s=0.0 if plan is None else plan.seconds,
        tile_s=0.0,
        agreement=0.0,
        max_abs=None,
        chosen=False,
        why=why,
    )


def _table(trials: Iterable[EngineTrial]) -> str:
    return "; ".join(trial_row(item).strip(" *") for item in trials)


def _finished(
    manifest: Manifest,
    model: PortableModel,
    engine: EngineDone,
    trials: Sequence[EngineTrial],
    folder: Path,
) -> Manifest:
    best = next(item for item in trials if item.chosen)
    assert best.max_abs is not None  # it kept its bound
    added = [
        Gate(
            name=AGREEMENT_GATE, value=best.agreement, bound=model.golden_agreement_min,
            unit="part of the golden cells", passed=True, sense="at least", detail=engine.built_utc,
        ),
        Gate(
            name=DIFFERENCE_GATE, value=best.max_abs, bound=model.golden_atol, unit="logits",
            passed=True, detail=engine.built_utc,
        ),
    ]  # fmt: skip
    kept = [gate for gate in manifest.gates if gate.name not in (AGREEMENT_GATE, DIFFERENCE_GATE)]
    changes = {
        "model": engine.file,
        "engine": engine,
        "precision": manifest.precision.model_copy(update={"done": model.precision}),
        "gates": [*kept, *added],
        "golden": manifest.golden.model_copy(
            update={"atol": model.golden_atol, "agreement_min": model.golden_agreement_min}
        ),
        "target": manifest.target.model_copy(
            update={"versions": {**manifest.target.versions, "tensorrt": engine.machine.tensorrt}}
        ),
        "files": {
            file.name: sha256_file(file)
            for file in sorted(folder.iterdir())
            if file.name != MANIFEST_NAME
        },
    }
    plain = manifest.model_copy(update=changes).plain()
    return Manifest.model_validate(plain)  # once more with every rule


def _cache(opened: Bundle, options: Options) -> bytes:
    if options.timing_cache is not None:
        return options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
    engine = opened.manifest.engine
    if engine is None or engine.timing_cache is None:
        return b""
    return opened.file(engine.timing_cache).read()


def _keep(path: Path, cache: bytes) -> None:
    from edgekd.contracts.artifacts import publish_file

    with publish_file(path) as part:
        part.write_bytes(cache)


def _same_file(source: Path, target: Path) -> None:
    """Another name for a file, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _verify(folder: Path, any_device: bool) -> None:
    """Load what was packed, as an application will; nobody can have signed it yet."""
    from edgekd.runtime.session import open_session

    with open_session(folder, (), any_device=any_device) as session:
        session.verify()
