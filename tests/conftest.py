"""What every test shares: threads, offline mode, hypothesis settings and a tiny random pair."""

import os

# Workers share the cores: more threads would only contend.
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network

from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from hypothesis import settings
from warm import Warm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

MOST_WORKERS = 8  # each one imports torch and builds its own pair
EOS = "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# Latin, a word repeated so that merges form, and characters of two, three and four bytes.
TRAINING_TEXT = [
    "def area(radius):\n    return 3.14159 * radius ** 2\n\nfor item in items:\n    print(item)\n",
    "the quick brown fox jumps over the lazy dog and the other dog jumps over the fox",
    "größe straße façade naïve Ελλάδα Ελλάδα Москва Москва 日本語 日本語 中文 中文 😀 😀 👩‍💻 👩‍💻",
]

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

if find_spec("triton") is None:  # there is none for this system: no kernel of its own to test
    collect_ignore_glob = [
        "kernels/test_*_triton.py",
        "kernels/test_aot.py",
        "kernels/test_cost.py",
        "kernels/test_cuda_graphs.py",
        "kernels/test_launch.py",
        "kernels/test_weights.py",
        "strategies/test_interpreted.py",
    ]

# Fixed examples: a run that fails fails again. Timing is not under test, so there is no deadline.
settings.register_profile("hybridgen", deadline=None, derandomize=True, database=None)
settings.load_profile("hybridgen")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seeds", type=int, default=25, help="how many seeds -m fuzz tries")


def pytest_configure(config: pytest.Config) -> None:
    """Triton kernels are interpreted, on CPU tensors, unless the tests for a GPU are asked for."""
    if config.option.markexpr != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is first imported
        with suppress(ImportError):
            let_loops_end_at_an_argument()
            let_dots_sum_in_order()


def let_loops_end_at_an_argument() -> None:
    """Triton 3.6 interprets a loop's bound by int() of an array [1], which numpy 2.4 refuses."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patched


def let_dots_sum_in_order() -> None:
    """Interpreted, as on a GPU, a row's bits must not depend on its place; numpy's products' do.

    With OpenBLAS' kernels for AVX2, rows 6 to 15 of sixteen have other last bits than elsewhere.
    """
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        kind = d.data.dtype
        products = a.data.astype(kind)[..., :, :, None] * b.data.astype(kind)[..., None, :, :]
        return interpreter.TensorHandle(products.sum(axis=-2) + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


@pytest.fixture(scope="module")
def references() -> Iterator[None]:
    """Ops on a CPU are their references for the tests of a module, which compare Triton with them,
    whether or not numba has compiled others."""
    yield from on_references()


@pytest.fixture
def with_references() -> Iterator[None]:
    """The same for one test: only references have parts in Python that it can replace."""
    yield from on_references()


def on_references() -> Iterator[None]:
    from hybridgen.kernels.registry import OPS

    with pytest.MonkeyPatch.context() as patch:
        for op in OPS.values():
            patch.setattr(op, "on_cpu", op.reference)
        yield


@pytest.fixture(
    scope="session", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test's tensors live and its kernels run: each test is also one for a GPU."""
    if request.param == "interpreter":
        return torch.device("cpu")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.fail("the interpreter was chosen: ask for the GPU tests with -m gpu alone")
    return torch.device("cuda")


@pytest.fixture(
    params=[
        pytest.param(1, id="1 thread"),
        # Beside another worker they wait for each other's core, many times as long as they work.
        pytest.param(2, id="2 threads", marks=pytest.mark.threads),
    ]
)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads torch uses: libraries share their sums out by it."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto` starts one worker a core, but not more than memory is good for."""
    return min(os.cpu_count() or 1, MOST_WORKERS)


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Runs Python programs that need not be started for real."""
    if not hasattr(os, "fork"):
        pytest.skip("there are no forks here")
    started = Warm()
    yield started
    started.close()


class TinyPair(NamedTuple):
    """Folders of two random checkpoints with one tokenizer."""

    slm: Path
    llm: Path


def train_tokenizer(vocab_size: int = 384) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer: every text has tokens, many tokens are part of a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TRAINING_TEXT,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOS],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, pad_token=EOS, chat_template=CHAT_TEMPLATE
    )


def random_model(vocab_size: int, layers: int, hidden: int, seed: int) -> "Qwen3ForCausalLM":
    """A Qwen3 model with random float32 weights, sharp enough that sampling is not uniform."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 32,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    """An ordinary checkpoint folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    return train_tokenizer()


@pytest.fixture(scope="session")
def tiny_pair(
    tiny_tokenizer: "PreTrainedTokenizerFast", tmp_path_factory: pytest.TempPathFactory
) -> TinyPair:
    folder = tmp_path_factory.mktemp("tiny_pair")
    size = len(tiny_tokenizer)
    return TinyPair(
        slm=save(random_model(size, 1, 32, seed=1), tiny_tokenizer, folder / "slm"),
        llm=save(random_model(size, 2, 64, seed=2), tiny_tokenizer, folder / "llm"),
    )
