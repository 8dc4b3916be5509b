"""The model card, written from ``metrics.json`` so that no figure is typed by hand."""

from typing import Any

from hybridgen.pair.data import MAX_CONTEXT
from hybridgen.pair.documents import LIBRARY_WEIGHT
from hybridgen.pair.measure import HEADS, LAYERS
from hybridgen.pair.packages import MAX_PACKAGE_BYTES

CARD = """\
---
license: psf-2.0
library_name: transformers
tags: [speculative-decoding, qwen3, code]
---

# The embedded pair

Two small Qwen3 models over one vocabulary, made for each other: `llm` ({llm_m:.1f}M parameters) has
read {sources}, and `slm`
({slm_m:.2f}M) was distilled from it to draft for it. They let `hybridgen` run, and be tested, on
any machine and without a download. They complete text that looks like what they have read; they do
not answer questions, they call functions that there never were, and their code is not to be
trusted. Both folders are ordinary transformers checkpoints in bfloat16:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from hybridgen.pair import LLM_PATH, SLM_PATH

llm = AutoModelForCausalLM.from_pretrained(LLM_PATH)
slm = AutoModelForCausalLM.from_pretrained(SLM_PATH)
tokenizer = AutoTokenizer.from_pretrained(LLM_PATH)
```

| | llm | slm |
|---|---|---|
{shapes}
| parameters (embedding tied) | {llm[parameters]:,} | {slm[parameters]:,} |
| context, tokens | {context} | {context} |
| training steps | {llm[steps]:,} | {slm[steps]:,} |
| tokens seen | {llm[tokens_seen]:,} | {slm[tokens_seen]:,} |
| held-out loss, nats a token | {llm[held_out_loss]:.3f} | {slm[held_out_loss]:.3f} |
| held-out bits a byte | {llm[bits_per_byte]:.3f} | {slm[bits_per_byte]:.3f} |

## Speculation

Measured on text that the LLM writes by itself from held-out prompts, with rejection sampling and
K = {drafts} drafts a round and no top-k or top-p. Agreement is the chance that one draft is kept;
τ is the mean number of tokens a round, the LLM's own token included (at most {best}).

| | agreement | acceptance rate | kept at position 1 to {drafts} | τ | repeated 8-grams |
|---|---|---|---|---|---|
{rows}

The last column is the share of 8-grams that occurred before in the same text: it shows looping.
Greedy text of a model this small repeats itself. What the checkpoints recommend, and
`generate` follows, is {recommended}.
{completions}
## Data

The `.py` files of CPython {python}'s standard library without its tests, generated tables and
bundled demos: {train_files} files, {train_tokens:,} tokens. {held_out_files} more files
({held_out_tokens:,} tokens), chosen by a hash of their paths, are held out; every loss above is
theirs, in windows of 512 tokens. Python is distributed under the PSF License Version 2, and the
weights are offered under it too.
{packages}
The tokenizer is byte-level BPE with {vocabulary:,} entries, {bytes_per_token:.2f} bytes a token on
the held-out files. Runs of spaces stay whole, so an indentation is one token. `<|endoftext|>`
separates documents and ends a text; there is no bos token.

## Recipe

{start}\
Muon on the hidden matrices and AdamW on the embedding and the norms, a linear decay to zero, weight
decay 0.1, bfloat16 autocast. Documents are shuffled, packed, and cut at another random phase in
every epoch; windows grow from 256 to 512 to 1,024 tokens. The SLM then minimises the forward KL
divergence from the LLM over the whole vocabulary, at temperatures 1 and 0.6, in windows of 1,024
tokens; most of them are text that the LLM wrote at temperatures from 0 to 1. Its embedding starts
as the LLM's, projected on the leading directions.

## Samples

Drawn as recommended, one each and not chosen. The prompt comes first, up to the mark `▶`.
{samples}"""


FIRST = """\
`python -m hybridgen.pair.train` trains a pair by this recipe.

"""

FURTHER = """\
This pair was trained further from another of its shapes and tokenizer (`--start`), whose `llm` had
seen {llm[tokens_seen]:,} tokens in {llm[steps]:,} steps and whose `slm` {slm[tokens_seen]:,} in
{slm[steps]:,}. `python -m hybridgen.pair.train` without a start trains a larger one by this recipe.

"""

COMPLETIONS = """
Of {count} texts from `{prompt}` at the recommended sampling {parse} are Python that parses (apart
from a cut-off end) and {ended} come to an end; the share of repeated 8-grams at that sampling is
{repeated_8grams_held_out:.3f} in texts from held-out prompts and {repeated_8grams:.3f} in these.
"""

PACKAGES = """
To it come sources of {count} packages of the Python package index under permissive licences:
{train_tokens:,} tokens, and {functions:,} small functions and classes whole, which teach where a
text ends. For each pass over them the recipe has {weight} over the library. Left out are tests,
vendored and generated code, tables, files that are not in English and near-duplicates, licence
headers, and of large packages what is above {limit} MB. {held_out} are held out
with all their files ({held_out_tokens:,} tokens): there the LLM's loss is
{llm[held_out_loss]:.3f} nats a token ({llm[bits_per_byte]:.3f} bits a byte), the SLM's
{slm[held_out_loss]:.3f} ({slm[bits_per_byte]:.3f}).

| package | version | licence | files | bytes |
|---|---|---|---|---|
{rows}
"""


def render(metrics: dict[str, Any]) -> str:
    """The card's text."""
    parts = {
        "shapes": _shapes(metrics),
        "packages": _packages(metrics["packages"]) if "packages" in metrics else "",
        "completions": "",
        "sources": _sources(metrics),
        "recommended": ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in metrics["sampling"].items()
        ),
        "start": FURTHER.format(**metrics["start"]) if "start" in metrics else FIRST,
    }
    if "completions" in metrics:
        parts["completions"] = COMPLETIONS.format(**metrics["completions"])
    return CARD.format(
        **{
            k: v
            for k, v in metrics.items()
            if k not in ("samples", "sampling", "speculation", *parts)
        },
        **parts,
        llm_m=metrics["llm"]["parameters"] / 1e6,
        slm_m=metrics["slm"]["parameters"] / 1e6,
        context=MAX_CONTEXT,
        best=metrics["drafts"] + 1,
        rows="\n".join(_row(label, entry) for label, entry in metrics["speculation"].items()),
        samples="".join(_sample(entry) for entry in metrics["samples"]),
    )


def _sources(metrics: dict[str, Any]) -> str:
    if "packages" not in metrics:
        return "Python's standard library"
    count = sum(1 for source in metrics["packages"]["sources"] if source["files"])
    return f"Python's standard library and sources of {count} packages"


def _shapes(metrics: dict[str, Any]) -> str:
    rows = {"layers, width, MLP width": LAYERS, "query heads, KV heads, head width": HEADS}
    return "\n".join(
        f"| {label} | "
        + " | ".join(", ".join(str(metrics[m]["shape"][n]) for n in names) for m in ("llm", "slm"))
        + " |"
        for label, names in rows.items()
    )


def _packages(metrics: dict[str, Any]) -> str:
    sources = [source for source in metrics["sources"] if source["files"]]
    return PACKAGES.format(
        **{k: v for k, v in metrics.items() if k != "sources"},
        count=len(sources),
        limit=MAX_PACKAGE_BYTES // 1_000_000,
        weight=LIBRARY_WEIGHT,
        held_out=" and ".join(source["name"] for source in sources if source["held_out"]),
        rows="\n".join(
            f"| {s['name']} | {s['version']} | {s['licence']} | {s['files']:,} | {s['bytes']:,} |"
            for s in sorted(sources, key=lambda source: source["name"].lower())
        ),
    )


def _row(label: str, entry: dict[str, Any]) -> str:
    kept = ", ".join(f"{share:.2f}" for share in entry["accepted_per_position"])
    return (
        f"| {label} | {entry['agreement']:.3f} | {entry['acceptance_rate']:.3f} | {kept} "
        f"| {entry['tau']:.2f} | {entry['repeated_8grams']:.3f} |"
    )


def _sample(entry: dict[str, str]) -> str:
    # Trailing blanks would be lost to editors, and the card is compared with the metrics.
    text = f"{entry['prompt']}▶{entry['text']}"
    return "\n````python\n" + "\n".join(line.rstrip() for line in text.splitlines()) + "\n````\n"
