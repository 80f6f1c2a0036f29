"""The parameters that every experiment notebook has, checked."""

import math
from collections.abc import Mapping
from typing import Any

from .. import fusion, loaders, matching
from ..checks import InputError, check_choice, check_whole, read_method, spell_method

# The parameters that every experiment notebook has (see its parameters cell).
PARAMETERS = (
    "preset", "dataset", "checkpoint_a", "checkpoint_b", "matchers", "corrections", "alphas", "seed_a", "seed_b",
    "epochs", "width", "loader", "device", "limit_train", "limit_test", "match_images", "correct_images",
    "evaluate_train", "results_path", "figures_dir", "match_seed", "held_out", "controls",
)  # fmt: skip


def refusal(name: str, value: object, accepted: str) -> InputError:
    hint = ""
    if isinstance(value, str) and accepted.startswith("a list "):  # what papermill makes of -p matchers [graph]
        typed = value if value.startswith("[") else f"[{value}]"
        hint = f"; with papermill a list is given by -y '{{{name}: {typed}}}'"
    return InputError(f"{name} {value!r} is not accepted; accepted: {accepted}{hint}")


def methods(name: str, texts: object, kind: str, table: Mapping[str, Any], least: int = 1) -> list[str]:
    """Matchers, corrections or controls as they are recorded, such as ["none", "activation(tap=pre_norm)"].

    Raises:
        InputError: `texts` is no list of them, at least so many, one of them is not accepted, or two are the same.
    """
    if not isinstance(texts, list | tuple) or len(texts) < least:
        raise refusal(name, texts, f"a list without repeats of {', '.join(table)}")
    spelled = [spell_method(*read_method(kind, text, table), table) for text in texts]
    if len(set(spelled)) < len(spelled):
        raise refusal(name, texts, f"a list without repeats of {', '.join(table)}")
    return spelled


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def check_share(name: str, value: object) -> None:
    """Raises InputError unless `value` is a number within [0, 1]."""
    if not _is_share(value):
        raise refusal(name, value, "a number within [0, 1]")


def check(p: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, matchers, corrections and controls as they are recorded (`methods`); None is a preset's.

    Raises:
        InputError: in one line, for the first parameter whose value is not accepted.
    """
    check_choice("preset", p["preset"], ("quick", "paper", "auto"))
    spelled = {
        "matchers": methods("matchers", p["matchers"], "matcher", matching.MATCHERS),
        "corrections": methods("corrections", p["corrections"], "correction", fusion.CORRECTIONS),
        "controls": methods("controls", p["controls"], "control", fusion.CONTROLS, least=0),
    }
    if not isinstance(p["alphas"], list | tuple) or not p["alphas"]:
        raise refusal("alphas", p["alphas"], "a list of numbers within [0, 1]")
    for alpha in p["alphas"]:
        check_share("alpha", alpha)
    if len(set(p["alphas"])) < len(p["alphas"]):
        raise refusal("alphas", p["alphas"], "no repeats")
    if not any(0 < alpha < 1 for alpha in p["alphas"]):
        raise refusal("alphas", p["alphas"], "at least one strictly between the parents, 0 and 1")
    for name in ("seed_a", "seed_b", "match_seed", "held_out", "limit_train", "limit_test"):
        check_whole(name, p[name], 0)
    for name, least in {"epochs": 1, "match_images": 2, "correct_images": 2}.items():  # one image has no variance
        if p[name] is not None:
            check_whole(name, p[name], least)
    width = p["width"]
    number = isinstance(width, int | float) and not isinstance(width, bool)
    if width is not None and not (number and math.isfinite(width) and width > 0):
        raise refusal("width", width, "any multiplier > 0, such as 0.25, 1, 2")
    check_choice("loader", p["loader"], ("memory", "ffcv", "auto"))
    if not isinstance(p["evaluate_train"], bool):
        raise refusal("evaluate_train", p["evaluate_train"], "true, false")
    if p.get("save_aligned") and not str(p["save_aligned"]).endswith(".safetensors"):
        raise refusal("save_aligned", p["save_aligned"], "a path that ends in .safetensors")
    loaders.pick_device(p["device"])
    return {**p, **spelled}
