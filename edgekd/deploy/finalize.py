"""From a portable bundle to a finished one, on the board that will run it.

Every precision that the bundle holds for this board's TensorRT is built, compared with the golden
outputs of FP32, and timed, all in one run; the fastest that keeps its bounds is sealed into the
bundle. Needs neither torch nor onnx.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import platform
import re
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
from edgekd.errors import (
    BundleError,
    EdgeKDError,
    EnvironmentLacksError,
    GateError,
    InputError,
    OutputError,
)
from edgekd.runtime.backends.trt import (
    Api,
    Device,
    TensorRtBackend,
    open_api,
    open_device,
    read_machine,
)
from edgekd.runtime.bundle import Bundle, open_bundle, require_replaceable, sealed_json

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
        InputError: a bundle that answers for places, whose engines are not built yet.
        TrustError: not signed as required.
        GateError: no engine keeps the bounds; the message holds what each did.
        EnvironmentLacksError: no TensorRT, no GPU, or a TensorRT for which it holds no file.
    """
    options = options or Options()
    opened = open_bundle(bundle, required)
    manifest = opened.manifest
    if not manifest.portable:
        given = "SCENE.tif -o map.tif" if manifest.evidence is None else "SET -o answers.csv"
        raise InputError(
            f"{bundle} runs with ONNX Runtime, which needs no engine; it is ready: edgekd run "
            f"{bundle} {given}"
        )
    manifest.of_maps(bundle)
    _require_arch(bundle, manifest, options.any_device)
    opened.check_files()
    target = out or bundle
    require_replaceable(target)
    if options.timing_cache is not None and options.timing_cache.is_dir():
        raise OutputError(f"{options.timing_cache} is a folder; give a file for the timing cache")
    api, device = open_api(), open_device()
    machine = read_machine(api, device)
    _require_target(bundle, manifest, machine, options.any_device)
    other = _other_board(manifest, machine)
    if other:
        say(other)
    if manifest.engine is not None:
        changes = manifest.engine.machine.changes(machine)
        say(f"built before: {'; '.join(changes) if changes else 'on this very machine'}")
    models = _chosen(bundle, manifest, api, options)
    workspace = options.workspace_mib or int(device.memory_bytes * WORKSPACE_SHARE) // _MIB
    golden = _golden(opened)
    cache = _cache(opened, options, machine)
    refused: list[EngineTrial] = []

    def attempt(
        some: Sequence[PortableModel], cache: bytes
    ) -> tuple[_Built, list[EngineTrial], str | None, bytes]:
        built, after = _build_all(
            opened, api, device, some, options, workspace, cache, refused, say
        )
        return (*_compare(built, refused, golden, machine, options, say), after)

    # FP32 is never the fastest: it is built where nothing lower keeps its bounds.
    lower = [item for item in models if item.precision != "fp32"]
    full = [item for item in models if item.precision == "fp32"]
    try:
        best, trials, layers, cache = attempt(lower or full, cache)
    except GateError as err:
        if not lower or not full:
            raise
        say(f"{err}; build fp32")
        best, trials, layers, cache = attempt(full, cache)
    with publish_folder(target, MANIFEST_NAME) as folder:
        for name in manifest.files:
            if name not in (MODEL_NAME, LAYERS_NAME, CACHE_NAME):
                _same_file(bundle / name, folder / name, link=out is None)
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
        finished = _finished(manifest, best.model, engine, folder)
        (folder / MANIFEST_NAME).write_text(sealed_json(finished.plain()), encoding="utf-8")
        say("load the bundle and run its golden inputs")
        _verify(folder, options.any_device)
        if (bundle / SIGNATURE_NAME).exists():
            say("the manifest changed, so the signature of the portable bundle is gone: sign anew")
    if options.timing_cache is not None and cache:
        _keep(options.timing_cache, cache)
    return finished


def _require_arch(bundle: Path, manifest: Manifest, any_device: bool) -> None:
    """Raise where this machine cannot be the target, before anything is missing here."""
    here, arch = platform.machine(), manifest.target.arch
    if here != arch and not any_device:
        raise BundleError(
            f"{bundle} is for {manifest.target.name} ({arch}) and this is {here}: engines are "
            f"built where they run; copy it there and type: edgekd finalize {bundle} (or add "
            "--any-device to build it for this machine's GPU)"
        )


def _require_target(bundle: Path, manifest: Manifest, machine: Machine, any_device: bool) -> None:
    """Raise unless the GPU is of the bundle's kind; orin-nx and agx-orin are told apart by name."""
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


def _other_board(manifest: Manifest, machine: Machine) -> str:
    """A sentence where the board's own name is not the target's; boards of others may be called
    anything, so it is no error."""
    target = load_target(manifest.target.name)
    name = re.sub(r"^Jetson | \d+ GB$", "", target.title)
    if machine.board is None or name.lower() in machine.board.lower():
        return ""
    return (
        f"note: the bundle is for {target.title} and this board calls itself '{machine.board}' "
        f"({machine.multiprocessors} multiprocessors): the times measured here are this board's"
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
    device: Device,
    models: Sequence[PortableModel],
    options: Options,
    workspace_mib: int,
    cache: bytes,
    refused: list[EngineTrial],
    say: Say,
) -> tuple[list[_Built], bytes]:
    """Plans and the timing cache; what could not be built goes to ``refused``.

    None is loaded yet: on a small board a loaded engine takes what the next build needs.
    """
    built: list[_Built] = []
    for model in models:
        say(f"build {model.precision} from {model.file} with TensorRT {api.text}")
        content = opened.file(model.file).read()
        settings = BuildOptions(workspace_mib, options.batch_max, options.dla_core, cache)
        try:
            with device.current():
                plan = build_plan(api, content, model, settings, lambda text: say(f"  {text}"))
        except (GateError, device.cuda.Error) as err:
            refused.append(_refused(model, str(err), say))
            continue
        cache = plan.timing_cache or cache
        for line in plan.warnings[:8]:
            say(f"  warning: {line}")
        say(f"  {len(plan.content) / 1e6:.1f} MB in {plan.seconds:.0f} s")
        built.append(_Built(model, plan))
    if not built:
        raise GateError(f"no engine could be built: {_table(refused)}")
    return built, cache


def _compare(
    built: Sequence[_Built],
    refused: list[EngineTrial],
    golden: _Golden,
    machine: Machine,
    options: Options,
    say: Say,
) -> tuple[_Built, list[EngineTrial], str | None]:
    """The fastest engine that keeps its bounds, what each did, and the fastest one's layers.

    Raises:
        GateError: none keeps them.
    """
    loaded: list[tuple[_Built, TensorRtBackend]] = []
    try:
        for item in built:
            try:
                # one call at a time: several engines are loaded, on a small board
                backend = TensorRtBackend(item.plan.content, machine, options.dla_core, streams=1)
            except EdgeKDError as err:
                refused.append(_refused(item.model, str(err), say))
                continue
            loaded.append((item, backend))
        trials, layers = _tried(loaded, refused, golden, options, say)
    finally:
        for _, backend in loaded:
            backend.close()
    passing = [number for number, (trial, _) in enumerate(trials) if trial.max_abs is not None]
    holding = [n for n in passing if trials[n][1]]
    if not holding:
        table = _table([*refused, *(trial for trial, _ in trials)])
        refused += [trial for trial, _ in trials]
        raise GateError(f"no engine keeps the bundle's bounds: {table}")
    best = min(holding, key=lambda number: trials[number][0].tile_s)
    done = []
    for number, (trial, _) in enumerate(trials):
        slower = trial.tile_s > trials[best][0].tile_s
        late = f"; slower than {trials[best][0].precision}" if slower else ""
        said = "; the fastest that keeps its bounds" if number == best else late
        done.append(trial.model_copy(update={"chosen": number == best, "why": trial.why + said}))
    for trial in done:
        say(trial_row(trial))
    return loaded[best][0], [*done, *refused], layers[best]


def _tried(
    loaded: list[tuple[_Built, TensorRtBackend]],
    refused: list[EngineTrial],
    golden: _Golden,
    options: Options,
    say: Say,
) -> tuple[list[tuple[EngineTrial, bool]], list[str | None]]:
    """Trials with whether each keeps its bounds, and the engines' layers.

    An engine that fails while it runs is closed and taken out of ``loaded``.
    """
    measured = []
    for item, backend in list(loaded):
        try:
            measured.append(_beside(backend, golden, options.batch_max))
        except EdgeKDError as err:
            refused.append(_refused(item.model, str(err), say))
            loaded.remove((item, backend))
            backend.close()
    if not loaded:
        raise GateError(f"no engine runs: {_table(refused)}")
    seconds = _times([b for _, b in loaded], golden.tensors[0], options.runs, options.batch_max)
    trials, layers = [], []
    for (item, backend), (worst, same), tile_s in zip(loaded, measured, seconds, strict=True):
        model = item.model
        holds = same >= model.golden_agreement_min and worst <= model.golden_atol
        said = (
            f"golden agreement {100 * same:.2f} % (at least {100 * model.golden_agreement_min:.2f}"
            f" %), logits within {worst:.3g} (at most {model.golden_atol:.3g})"
        )
        layers.append(backend.inspect())
        trial = EngineTrial(
            precision=model.precision,
            typing=model.typing,
            source=model.file,
            plan_bytes=len(item.plan.content),
            build_s=item.plan.seconds,
            tile_s=tile_s,
            agreement=same,
            max_abs=worst if np.isfinite(worst) else None,
            fused_attention=_fused(layers[-1]),
            chosen=False,
            why=said if holds else f"fails: {said}",
        )
        trials.append((trial, holds))
    return trials, layers


def _times(
    backends: Sequence[TensorRtBackend], tensor: FloatArray, runs: int, batch: int = 1
) -> list[float]:
    """Median seconds of a tile for each engine, in batches of ``batch``, run in turn: A B A B."""
    times: list[list[float]] = [[] for _ in backends]
    together = np.repeat(tensor, batch, axis=0)
    for number in range(WARM_UP_RUNS + runs):
        for backend, mine in zip(backends, times, strict=True):
            name = next(iter(backend.input_shapes))
            start = time.perf_counter()
            backend.infer({name: together})
            if number >= WARM_UP_RUNS:
                mine.append((time.perf_counter() - start) / batch)
    return [statistics.median(mine) for mine in times]


def _beside(backend: TensorRtBackend, golden: _Golden, batch: int) -> tuple[float, float]:
    """Largest difference of a golden logit to FP32, and part of the cells with its class.

    Each tile alone, and where the engine takes more at once, all in a full batch as well.
    """
    name, output = next(iter(backend.input_shapes)), next(iter(backend.output_shapes))
    pairs = list(zip(golden.tensors, golden.logits, strict=True))
    if batch > 1:
        order = [number % len(pairs) for number in range(batch)]
        pairs.append(
            (
                np.concatenate([golden.tensors[n] for n in order]),
                np.concatenate([golden.logits[n] for n in order]),
            )
        )
    worst, same, cells = 0.0, 0, 0
    for tensor, want in pairs:
        have = backend.infer({name: tensor})[output]
        if have.shape != want.shape:
            raise BundleError(f"the engine gives {have.shape}, the golden outputs are {want.shape}")
        difference = float(np.abs(have.astype(np.float64) - want).max())
        finite = bool(np.isfinite(difference))
        worst = max(worst, difference) if finite else np.inf
        same += int((have.argmax(1) == want.argmax(1)).sum()) if finite else 0
        cells += want[:, 0].size
    return worst, same / cells


def _golden(opened: Bundle) -> _Golden:
    manifest = opened.manifest
    normalize = Normalizer(manifest.inputs[0])
    output = manifest.outputs[0].name
    with np.load(io.BytesIO(opened.file(manifest.golden.file).read())) as arrays:
        names = [(f"image_{n}", f"{output}_{n}") for n in range(manifest.golden.count)]
        for name in (item for pair in names for item in pair):
            if name not in arrays:
                raise BundleError(f"{opened.path} lacks the golden {name}; build the bundle again")
        return _Golden(
            [normalize(arrays[image])[None] for image, _ in names],
            [arrays[logits][None] for _, logits in names],
        )


def _fused(layers: str | None) -> int | None:
    """Kernels of the engine whose name or tactic says fused attention."""
    if layers is None:
        return None
    try:
        found = json.loads(layers).get("Layers", [])
    except (ValueError, AttributeError):
        return None
    named = [
        f"{item.get('Name', '')} {item.get('TacticName', '')}" if isinstance(item, dict) else item
        for item in found
    ]
    return sum("mha" in str(text).lower() for text in named)


def _refused(model: PortableModel, why: str, say: Say) -> EngineTrial:
    say(f"{model.precision} refused: {why}")
    return EngineTrial(
        precision=model.precision,
        typing=model.typing,
        source=model.file,
        plan_bytes=0,
        build_s=0.0,
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
    folder: Path,
) -> Manifest:
    best = next(item for item in engine.trials if item.chosen)
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
    made = (MODEL_NAME, LAYERS_NAME, CACHE_NAME)
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
        # Of what was in the bundle the hashes that were checked, not of what may lie there by now.
        "files": {
            file.name: sha256_file(file) if file.name in made else manifest.files[file.name]
            for file in sorted(folder.iterdir())
            if file.name != MANIFEST_NAME
        },
    }
    plain = manifest.model_copy(update=changes).plain()
    return Manifest.model_validate(plain)  # once more with every rule


def _cache(opened: Bundle, options: Options, machine: Machine) -> bytes:
    if options.timing_cache is not None:
        return options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
    engine = opened.manifest.engine
    if engine is None or engine.timing_cache is None or engine.machine.changes(machine):
        return b""
    return opened.file(engine.timing_cache).read()


def _keep(path: Path, cache: bytes) -> None:
    from edgekd.contracts.artifacts import publish_file

    with publish_file(path) as part:
        part.write_bytes(cache)


def _same_file(source: Path, target: Path, link: bool) -> None:
    """A copy; or another name for a file whose own is about to go, where there are links."""
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _verify(folder: Path, any_device: bool) -> None:
    """Load what was packed, as an application will; nobody can have signed it yet."""
    from edgekd.runtime.session import open_session

    with open_session(folder, (), any_device=any_device) as session:
        session.verify()
