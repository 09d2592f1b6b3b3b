"""The one reader of params.yaml: YAML 1.2 in, typed sections out, refusals in our own words.

YAML 1.2 because `dvc exp run -S x=1e-5` writes `1e-05`, which YAML 1.1 reads as text. A stage does

    params = read_params()
    grpo = section(params, "grpo", GrpoSettings)            # scales.<scale>.grpo
    arm = parse(params, "arms.projected", ArmSettings)

and so depends on nothing but this module and the sections it names. What crosses sections is checked once, by
the `validate` stage (`settings.params`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeGuard, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, YAMLError

from projected_grpo.errors import ABSENT, LabError, ParamsError
from projected_grpo.settings.section import BROKEN_RULE

# Sections that a study may change.
CHANGEABLE = ("seeds", "base", "problems", "extract", "direction", "grpo", "sampling")

Params = Mapping[str, Any]  # the file as read: nested mappings, lists and scalars
Model = TypeVar("Model", bound=BaseModel)


def read_params(path: str | os.PathLike[str] = "params.yaml", study: str | None = None) -> Params:
    """The whole file, untyped; with what a study changes in the active scale, if one is named.

    Raises:
        ParamsError: missing, not YAML (a key given twice included), not a mapping, or no such study.
    """
    params = _read(path)
    return params if study is None else in_study(params, study)


def in_study(params: Params, study: str) -> Params:
    """`params` with the keys of `studies.<study>` written over those of the active scale, section by section; before
    them those of the study that it starts from (`of`).

    Raises:
        ParamsError: no such study, or it starts from one that starts from another.
    """
    changes = _study(params, study, "study")
    if (origin := changes.get("of")) is not None:
        if _study(params, origin, f"studies.{study}.of").get("of") is not None:
            rule, fix = "must not itself start from another study", "name the study that both start from"
            raise ParamsError([LabError(setting=f"studies.{study}.of", value=origin, rule=rule, fix=fix)])
        params = in_study(params, origin)
    scale = active_scale(params)
    block = dict(params["scales"][scale])
    for name in CHANGEABLE:
        change = changes.get(name)
        if isinstance(change, Mapping):
            block[name] = {**block[name], **change}
        elif change is not None:
            block[name] = change
    return {**params, "scales": {**params["scales"], scale: block}}


def _study(params: Params, name: object, setting: str) -> Mapping[str, Any]:
    """The block of one study, which `setting` names."""
    studies = params.get("studies")
    known = list(studies) if isinstance(studies, Mapping) else []
    if not isinstance(studies, Mapping) or not isinstance(name, str) or not isinstance(studies.get(name), Mapping):
        raise ParamsError([unknown_name(setting, name, known, "must name a block of `studies`")])
    found: Mapping[str, Any] = studies[name]
    return found


def _read(path: str | os.PathLike[str]) -> Params:
    name = os.fspath(path)
    reader = YAML(typ="safe", pure=True)  # pure: the C parser knows YAML 1.1 only
    reader.version = (1, 2)
    try:
        with open(path, encoding="utf-8") as stream:
            content = reader.load(stream)
    except FileNotFoundError:
        raise _file_fault(name, ABSENT, "the file must exist", "run from the repository root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise _file_fault(name, "(unreadable)", "must be valid YAML 1.2", line) from None
    if not isinstance(content, dict):
        raise _file_fault(name, content, "must be a mapping of settings", "restore it from Git")
    return content


def active_scale(params: Params) -> str:
    """The value of `scale`.

    Raises:
        ParamsError: it is not set, or names no block of `scales`.
    """
    scales = params.get("scales")
    known = list(scales) if isinstance(scales, Mapping) else []
    scale = params.get("scale", ABSENT)
    if not isinstance(scale, str) or scale not in known:
        raise ParamsError([unknown_name("scale", scale, known, "must name a block of `scales`")])
    return scale


def section(params: Params, name: str, model: type[Model]) -> Model:
    """The section `name` of the active scale, checked.

    Raises:
        ParamsError: with every fault of this section.
    """
    return parse(params, f"scales.{active_scale(params)}.{name}", model)


def parse(params: Params, path: str, model: type[Model]) -> Model:
    """The block at the dotted `path`, checked.

    Raises:
        ParamsError: with every fault of this block.
    """
    block: Any = params
    walked: list[str] = []
    for key in path.split("."):
        known = list(block) if isinstance(block, Mapping) else []
        walked.append(key)
        if key not in known:
            raise ParamsError([unknown_name(".".join(walked), ABSENT, known, "must be set", wanted=key)])
        block = block[key]
    try:
        return model.model_validate(block)
    except ValidationError as error:
        raise ParamsError([_translated(path, model, detail) for detail in error.errors()]) from None


def unknown_name(setting: str, value: object, known: list[str], rule: str, *, wanted: object = None) -> LabError:
    """A refusal of a name outside a closed list, with the nearest known one as the fix."""
    return LabError(setting=setting, value=value, rule=rule, fix=did_you_mean(wanted or value, known))


def did_you_mean(name: object, known: list[str]) -> str:
    """ "did you mean `steps`?" if something is near, else the list of what there is."""
    near = get_close_matches(str(name), known, n=1)
    if near and near[0] != name:
        return f"did you mean `{near[0]}`?"
    return f"one of: {', '.join(known)}" if known else "restore params.yaml from Git"


# ---------------------------------------------------------------- pydantic's errors in our words

_WANTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a block of settings",
    "model_attributes_type": "a block of settings",
}


def _translated(path: str, model: type[BaseModel], detail: ErrorDetails) -> LabError:
    """One pydantic error as setting, value, rule, fix."""
    location, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    if kind == BROKEN_RULE:
        setting = _dotted(path, (*location, *filter(None, [context["field"]])))
        return LabError(setting=setting, value=context["value"], rule=context["rule"], fix=context["fix"])
    setting = _dotted(path, location)
    if kind == "extra_forbidden":
        known = list(_model_at(model, location[:-1]).model_fields)
        rule = "no such setting"
        return LabError(setting=setting, value=detail["input"], rule=rule, fix=did_you_mean(location[-1], known))
    value = ABSENT if kind == "missing" else detail["input"]
    if kind == "literal_error":
        choices = [choice.strip("' ") for choice in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return LabError(
            setting=setting,
            value=value,
            rule=f"must be one of {', '.join(choices)}",
            fix=did_you_mean(value, choices),
        )
    meaning = _meaning(model, location)
    return LabError(setting=setting, value=value, rule=_rule(kind, context, detail["msg"]), fix=meaning)


def _rule(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind == "missing":
        return "must be set"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}"
    bounds = {
        "greater_than": ("gt", "above"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "below"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in bounds:
        key, words = bounds[kind]
        return f"must be {words} {context[key]}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}"
    return message[:1].lower() + message[1:]


def _meaning(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The field's own docstring as advice: what to put there."""
    names = [part for part in location if isinstance(part, str)]
    while names:
        field = _model_at(model, tuple(names[:-1])).model_fields.get(names[-1])
        if field is not None and field.description:
            return f"{names[-1]} is: {field.description}"
        names.pop()
    return (model.__doc__ or "see params.yaml").strip().splitlines()[0]


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The nested section at `location`, as deep as sections go; one that may be null counts too."""
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        inner = [kind for kind in (annotation, *get_args(annotation)) if _is_section(kind)]
        if not inner:
            break
        model = inner[0]
    return model


def _is_section(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _dotted(path: str, location: tuple[int | str, ...]) -> str:
    return path + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _file_fault(name: str, value: object, rule: str, fix: str) -> ParamsError:
    return ParamsError([LabError(setting=name, value=value, rule=rule, fix=fix)])
