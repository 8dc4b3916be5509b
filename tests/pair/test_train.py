"""The whole recipe in seconds: what it leaves behind are ordinary checkpoints."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridgen.pair import card, data, loop, optim, parallel, train
from hybridgen.pair.packages import Source


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``out`` and ``work`` of a tiny run."""
    folder = tmp_path_factory.mktemp("pair")
    threads = torch.get_num_threads()
    packages = folder / "packages"
    packages.mkdir()
    rows, sources = [], []
    for name in ("apples", "pears"):
        text = f'"""All about {name}."""\n\n\ndef {name}():\n    x = 1\n    return x\n' * 40
        held_out = name == "pears"
        rows.append(json.dumps({"path": f"{name}/core.py", "held_out": held_out, "text": text}))
        sources.append(asdict(Source(name, "1.0", "MIT", held_out, 1, len(text))))
    (packages / "texts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (packages / "sources.json").write_text(json.dumps(sources), encoding="utf-8")
    work, out = folder / "work", folder / "out"
    train.main(["--smoke", "--packages", str(packages), "--out", str(out), "--work", str(work)])
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("name", ["llm", "slm"])
def test_smoke_run_leaves_a_checkpoint_that_generates(smoke: Path, name: str) -> None:
    folder = smoke / "out" / name
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = AutoTokenizer.from_pretrained(folder)("import os\n", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert model.dtype == torch.bfloat16
    assert output.shape[1] == inputs["input_ids"].shape[1] + 4


def test_smoke_run_writes_metrics_and_the_card(smoke: Path) -> None:
    metrics = json.loads((smoke / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["llm"]["steps"] == metrics["slm"]["steps"] == 3
    text = (smoke / "out" / "README.md").read_text(encoding="utf-8")
    assert text == card.render(metrics)
    assert "Of 4 texts from `def quicksort(items):`" in text
    assert "| apples | 1.0 | MIT | 1 |" in text and "pears" in text


def test_a_finished_run_is_not_trained_again(smoke: Path) -> None:
    before = torch.load(smoke / "work" / "slm.0.pt", weights_only=True)
    train.train_pair(0, train.parse(["--smoke"])[0], smoke / "work")
    after = torch.load(smoke / "work" / "slm.0.pt", weights_only=True)
    assert after["step"] == before["step"]
    assert all(torch.equal(after["model"][k], before["model"][k]) for k in before["model"])


def test_a_run_may_start_from_a_pair(smoke: Path) -> None:
    """Of its tokenizer and shapes, and near its weights after one step; with others of its own."""
    start, out = smoke / "out", smoke / "further"
    options = ["--smoke", "--start", str(start), "--seed", "1", "--llm-steps", "1"]
    options += ["--slm-steps", "1", "--work", str(smoke / "further_work"), "--out", str(out)]
    threads = torch.get_num_threads()
    train.main(options)
    torch.set_num_threads(threads)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["llm"]["steps"] == metrics["start"]["llm"]["steps"] + 1 == 3 + 1
    assert (out / "README.md").read_text(encoding="utf-8") == card.render(metrics)
    for name in ("llm", "slm"):
        tokenizers = [(folder / name / "tokenizer.json").read_bytes() for folder in (start, out)]
        assert tokenizers[0] == tokenizers[1]
        before, after = (load_file(f / name / "model.safetensors") for f in (start, out))
        assert before.keys() == after.keys()
        for key, weight in before.items():
            assert similarity(weight, after[key]) > 0.99, key


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a.flatten().float(), b.flatten().float(), 0).item()


def test_help_explains(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    assert "standard library" in text and "--llm-minutes" in text


def test_budget_counts_steps_or_minutes() -> None:
    assert loop.Budget(10).progress(5, seconds=1e9) == 0.5
    assert loop.Budget(10, minutes=2.0).progress(10**9, seconds=60.0) == 0.5


def test_schedule_warms_up_and_ends_at_zero() -> None:
    assert optim.schedule(0.0) < optim.schedule(optim.WARMUP / 2) < optim.schedule(optim.WARMUP)
    assert optim.schedule(optim.WARMUP) == 1.0
    assert optim.schedule(1.0) == 0.0


def _toy_run(folder: Path, fail_after: int | None = None) -> loop.Run:
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed_tokens": nn.Embedding(8, 4), "head": nn.Linear(4, 8)})

    def loss(window: torch.Tensor) -> torch.Tensor:
        scores = model["head"](model["embed_tokens"](window[:, :-1]))
        return nn.functional.cross_entropy(scores.flatten(0, 1), window[:, 1:].flatten())

    def batches(rows: int, length: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        for count in itertools.count():
            if count == fail_after:
                raise KeyboardInterrupt
            yield rng.integers(8, size=(rows, length + 1))

    phases = (loop.Phase(0.3, 2, 8), loop.Phase(1.0, 1, 16))
    return loop.Run(
        "toy", model, loss, batches, phases, loop.Budget(5), folder, seed=0, save_every=0.0
    )


def test_an_interrupted_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        loop.fit(_toy_run(tmp_path / "a", fail_after=2), 0)
    continued, unbroken = _toy_run(tmp_path / "a"), _toy_run(tmp_path / "b")
    assert loop.fit(continued, 0) == loop.fit(unbroken, 0) == 5
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(continued.model.state_dict()[name], weight), name


def _check_parallel(rank: int) -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.full((2, 3), float(rank))
    parallel.average_gradients([weight])
    assert torch.equal(weight.grad, torch.full((2, 3), 0.5))
    with torch.no_grad():
        weight.fill_(float(rank))
    parallel.share([weight], owner=1)
    assert torch.equal(weight, torch.ones(2, 3))
    assert parallel.mean(float(rank)) == 0.5


def test_two_processes_average_and_share() -> None:
    parallel.launch(_check_parallel, 2)


def test_windows_cover_the_documents_once() -> None:
    documents = [np.arange(start, start + 10, dtype=np.uint16) for start in range(0, 100, 10)]
    cut = data.windows(documents, 9, np.random.default_rng(0))
    assert cut.shape == (11, 10)
    assert len(set(cut[:, :-1].flatten().tolist())) == 99
