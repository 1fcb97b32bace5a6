"""Whose code wrote a checkpoint: what its options, its tensors, its name and the user say, which must agree.

The tensors of DiT, SiT and REPA are alike, and what they predict is not: read wrongly, a network draws noise.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ard.core.errors import InputError
from ard.teacher.teacher import SourceFormat

DIT, SIT, REPA, PIXART = SourceFormat.DIT, SourceFormat.SIT, SourceFormat.REPA, SourceFormat.PIXART
OF_REPA = {"encoder_depth", "enc_type", "proj_coeff", "projector_embed_dims"}  # Options that only REPA's training has.
OF_SIT = {"train_eps", "sample_eps", "loss_weight"}  # And only SiT's.
OF_PIXART = {"t_block.1.weight", "y_embedder.y_proj.fc1.weight"}


class Evidence(NamedTuple):
    """Something that speaks for one or more of the formats."""

    said: str
    formats: frozenset[SourceFormat]


def recognise(
    tensors: Iterable[str], options: Mapping[str, Any], path: Path, told: SourceFormat | None
) -> SourceFormat:
    """The format of a checkpoint.

    What the file holds must agree with what the user says, or else with the file's name. InputError when it does not,
    with all readings named, or when nothing tells.
    """
    said = _by_user(told) if told else _by_name(path)
    evidence = [*_by_tensors(set(tensors)), *_by_options(options), *said]
    left = frozenset({DIT, SIT, REPA, PIXART}).intersection(*(one.formats for one in evidence))
    if len(left) == 1:
        return next(iter(left))
    readings = "; ".join(f"{one.said}: {' or '.join(sorted(one.formats))}" for one in evidence)
    if left:
        raise InputError(
            f"{path} does not say whose it is, and the tensors of DiT, SiT and REPA are alike; add --format "
            f"{' or '.join(sorted(left))}" + (f" ({readings})" if readings else "")
        )
    remedy = "--format" if not told else "another --format, or save the weights alone where the options are wrong"
    raise InputError(f"{path} can be read in two ways ({readings}); say which with {remedy}")


def check_options(options: Mapping[str, Any], where: Path) -> None:
    """InputError for the options of a flow that was trained on another path, or to predict another quantity."""
    if not any(SIT in one.formats for one in _by_options(options)):
        return
    path, prediction = str(options.get("path_type", "linear")), str(options.get("prediction", "velocity"))
    if path.lower() != "linear" or prediction.lower() not in {"velocity", "v"}:
        raise InputError(
            f"{where} was trained on the path {path} to predict {prediction}; linear and velocity are read"
        )


def _by_user(told: SourceFormat) -> list[Evidence]:
    return [Evidence("--format", frozenset({told}))]


def _by_name(path: Path) -> list[Evidence]:
    """Words of the file's name; REPA's networks are SiTs."""
    named = set(re.findall(r"(?<![a-z])(dit|sit|repa|pixart)(?![a-z])", path.stem.lower()))
    formats = {"repa"} if "repa" in named else named
    return [Evidence(f"the name {path.name}", frozenset(map(SourceFormat, formats)))] if formats else []


def _by_tensors(names: set[str]) -> list[Evidence]:
    if names & OF_PIXART:
        return [Evidence("its cross-attentions", frozenset({PIXART}))]
    projectors = any(name.startswith("projectors.") for name in names)
    return [Evidence("its projectors", frozenset({REPA}))] if projectors else []


def _by_options(options: Mapping[str, Any]) -> list[Evidence]:
    """What a training's own options say; a flow's that do not tell SiT's from REPA's speak for both."""
    found, model = [], str(options.get("model", ""))
    if (named := re.match(r"(dit|sit|pixart)(?![a-z])", model.lower())) is not None:
        formats = {SIT, REPA} if named[1] == "sit" else {SourceFormat(named[1])}
        found.append(Evidence(f"its option model {model}", frozenset(formats)))
    if "path_type" in options:
        found.append(Evidence(f"its option path_type {options['path_type']}", frozenset({SIT, REPA})))
        velocity = str(options.get("prediction"))
        of_repa, of_sit = OF_REPA & options.keys() or velocity == "v", OF_SIT & options.keys() or velocity == "velocity"
        if bool(of_repa) != bool(of_sit):
            mark = sorted((OF_REPA | OF_SIT) & options.keys())[:1] or [f"prediction {velocity}"]
            found.append(Evidence(f"its option {mark[0]}", frozenset({REPA if of_repa else SIT})))
    elif OF_REPA & options.keys():
        found.append(Evidence(f"its option {min(OF_REPA & options.keys())}", frozenset({REPA})))
    return found
