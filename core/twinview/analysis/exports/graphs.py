"""The encoder as a graph that needs neither twinview nor its library: ONNX and TorchScript."""
from __future__ import annotations

import contextlib
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from twinview.analysis.exports.common import Checked, Exported, Outputs, Trial, compared, installed, other_size, plain_names, refuse_others_at, trials
from twinview.analysis.targets import Target
from twinview.errors import CheckpointError
from twinview.files import in_place_of, write_atomic
from twinview.values import Size
from twinview.version import __version__

RAISED = re.compile(r"(?:[\w.]*(?:Error|Exception): )(.+)")  # the last line of a traceback that is part of a message


def to_onnx(target: Target, out: Path, size: Size) -> Exported:
    """An .onnx file with inputs `images` [B, C, H, W], outputs `pooled` and `cells`; any batch, and any size that it agrees at.

    Raises CheckpointError where a package is missing, or the encoder cannot be traced.
    """
    for package in ("onnx", "onnxscript"):
        if not installed(package):
            raise CheckpointError("to=onnx: wants the packages onnx and onnxscript. Install twinview[onnx].")
    refuse_others_at(out)
    sizes = [size, other_size(size, _stride(target))]
    shown, said = trials(target, sizes)
    names = plain_names(shown[0])
    model = Outputs(target.encoder, names).eval()
    notes: tuple[str, ...] = ()
    with in_place_of(out) as place:
        try:
            _onnx(model, shown[1], names, place, any_size=True)  # whose maps have no side of 1 cell: torch.export takes that for fixed
            checked = _run_onnx(place, names, shown, said)
            if not checked.near():
                raise ValueError(checked.off())
        except CheckpointError:
            raise
        except Exception as e:  # the exporter, onnx and onnxruntime each raise their own
            notes = (_alone(size, sizes[1], e),)
            shown, said = trials(target, [size])
            try:
                _onnx(model, shown[0], names, place, any_size=False)
                checked = _run_onnx(place, names, shown, said)
            except Exception as error:
                raise CheckpointError(f"to=onnx: {target.use} cannot be traced: {_line(error)}. Write to=safetensors.") from None
            checked.judged("onnx")
    run = f'{", ".join(names)} = session.run(None, {{"images": images}})'
    code = ("import onnxruntime", f"session = onnxruntime.InferenceSession({str(out)!r})", run)
    return Exported(paths=(out,), code=code, checked=checked, notes=notes)


def _onnx(model: Outputs, trial: Trial, names: tuple[str, ...], out: Path, *, any_size: bool) -> None:
    auto = torch.export.Dim.AUTO
    shapes = {"images": {0: auto, **({2: auto, 3: auto} if any_size else {})}}
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            model, (trial.images,), dynamo=True, input_names=["images"], output_names=list(names), dynamic_shapes=shapes, verbose=False,
        )
        made = program.model_proto
        made.metadata_props.add(key="twinview", value=__version__)
        with write_atomic(out) as file:
            file.write(made.SerializeToString())


def _run_onnx(out: Path, names: tuple[str, ...], shown: list[Trial], said: str) -> Checked:
    by = installed("onnxruntime")
    if not by:
        return Checked("", float("nan"), 0.0, "not run: onnxruntime is not installed")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    worst, scale = compared(shown, names, lambda images: session.run(list(names), {"images": images.numpy()}))
    return Checked(by, worst, scale, said)


def to_torchscript(target: Target, out: Path, size: Size) -> Exported:
    """A .pt file that `torch.jit.load` reads, images -> (pooled, cells); of any size that it agrees at."""
    refuse_others_at(out)
    sizes = [size, other_size(size, _stride(target))]
    shown, said = trials(target, sizes)
    names = plain_names(shown[0])
    by = f"torch {torch.__version__}"
    with _quiet(), torch.no_grad(), in_place_of(out) as place:
        try:
            traced = torch.jit.trace(Outputs(target.encoder, names).eval(), (shown[0].images[:2],), check_trace=False)  # type: ignore[no-untyped-call]
        except Exception as e:  # whatever tracing raises
            raise CheckpointError(f"to=torchscript: {target.use} cannot be traced: {_line(e)}. Write to=safetensors.") from None
        torch.jit.save(traced, str(place), _extra_files={"twinview": __version__})
        loaded = torch.jit.load(str(place))  # type: ignore[no-untyped-call]
        notes: tuple[str, ...] = ()
        try:
            checked = Checked(by, *compared(shown, names, loaded), said)
            if not checked.near():
                raise ValueError(checked.off())
        except Exception as e:  # of another size
            notes = (_alone(size, sizes[1], e),)
            shown, said = trials(target, [size])
            try:
                checked = Checked(by, *compared(shown, names, loaded), said)
            except Exception as error:
                raise CheckpointError(f"to=torchscript: {target.use} cannot be traced: {_line(error)}. Write to=safetensors.") from None
            checked.judged("torchscript")
    code = ("import torch", f"model = torch.jit.load({str(out)!r})", f"{', '.join(names)} = model(images)")
    return Exported(paths=(out,), code=code, checked=checked, notes=notes)


def _stride(target: Target) -> int:
    spec: Any = target.encoder.spec
    return int(max([spec.cells.stride, *(level.stride for level in spec.levels.values())]))


def _alone(size: Size, other: Size, error: Exception) -> str:
    """That a graph is of one size, and what came of another: the words of a library, whatever they are, or how far it was off."""
    here, there = (f"{height}x{width}" for height, width in (size, other))
    return f'takes images of {here} alone. At {there} it failed: "{_line(error)}"'


def _line(error: Exception) -> str:
    """The line of an error that says what is wrong: of TorchScript, whose messages hold a traceback, the last one."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    raised = RAISED.fullmatch(lines[-1]) if len(lines) > 1 else None
    return (raised[1] if raised else lines[0] if lines else type(error).__name__).rstrip(".")[:160]


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporters speak of their own inner steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
