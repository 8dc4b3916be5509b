"""Profiles for tests: of any values under hypothesis, and one that is written out."""

from typing import Any

from hypothesis import strategies as st

from hybridgen.profiling import ProfileResult, TokenProfile

FLOATS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
MEASURED = st.none() | st.floats(0, 20)
IDS = st.integers(0, 2**31)
# Half of all texts are made of what files and pages must not trip over.
TRAPS = ["<script>", "</script>", "<!--", "]]>", "&amp;", "&", '"', "'", "\\", "{}", "  "]
TRAPS += ["\n", "\t", "\r", "\0", "\x1b[31m", "\u2028", "\u202e", "e\u0301", "\ufeff"]
TRAPS += ["中文", "한국", "é", "👩\u200d💻"]
TEXTS = st.text(max_size=8) | st.lists(st.sampled_from(TRAPS), max_size=3).map("".join)


def token(position: int, text: str = "x", value: float | None = None, **given: Any) -> TokenProfile:
    """A token of the SLM with one value for all metrics."""
    values = {"aleatoric_uncertainty": value, "epistemic_uncertainty": value, "entropy": value}
    named = {"token_id": position, "token_text": text, "position": position, "model_used": "slm"}
    return TokenProfile(**{**named, **values, **given})


def profile(tokens: list[TokenProfile], **given: Any) -> ProfileResult:
    text = "".join(each.token_text for each in tokens)
    values = {"stats": {"strategy": "slm"}, "metric": "uncertainty", "threshold": None}
    return ProfileResult(
        **{**values, "tokens": tokens, "generated_text": text, "measured_by": "slm", **given}
    )


@st.composite
def tokens(draw: st.DrawFn, position: int, numbers: Any = MEASURED) -> TokenProfile:
    top = draw(st.lists(st.tuples(st.floats(0, 1), IDS, TEXTS), max_size=3))
    rejected = draw(st.none() | IDS)
    return TokenProfile(
        token_id=draw(IDS),
        token_text=draw(TEXTS),
        position=position,
        model_used=draw(st.sampled_from(["slm", "llm", "lookup"])),
        aleatoric_uncertainty=draw(numbers),
        epistemic_uncertainty=draw(numbers),
        entropy=draw(numbers),
        top_k_probs=tuple(each[0] for each in top),
        top_k_ids=tuple(each[1] for each in top),
        top_k_texts=tuple(each[2] for each in top),
        accepted=draw(st.none() | st.booleans()),
        rejected_id=rejected,
        rejected_text=None if rejected is None else draw(TEXTS),
        p=draw(numbers),
        q=draw(numbers),
    )


@st.composite
def profiles(draw: st.DrawFn, numbers: Any = MEASURED, most: int = 6) -> ProfileResult:
    """The text is that of the tokens, at times cut as by a stop string."""
    count = draw(st.integers(0, most))
    drawn = [draw(tokens(position, numbers)) for position in range(count)]
    text = "".join(each.token_text for each in drawn)
    keys = st.text(max_size=4)
    scalars = st.none() | st.booleans() | st.integers() | FLOATS | TEXTS
    return ProfileResult(
        tokens=tuple(drawn),
        generated_text=text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text,
        stats=draw(st.dictionaries(keys, scalars | st.lists(scalars, max_size=2), max_size=3)),
        metric=draw(st.sampled_from(["uncertainty", "entropy"])),
        threshold=draw(numbers),
        measured_by=draw(st.sampled_from(["slm", "llm"])),
    )
