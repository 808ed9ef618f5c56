"""Samplers of other programs on the same weights, to compare ours with."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.model.gpt import GPT
    from nanogpt_cli.sampling.settings import Sampling
    from nanogpt_cli.sampling.timing import Rival


def nanogpt(folder: Path, model: GPT, sampling: Sampling) -> Rival:
    """``generate`` of the nanoGPT checkout in ``folder``.

    This runs the checkout's ``model.py``: name only a checkout you trust.

    Raises:
        UserError: the folder is no checkout of nanoGPT, or nanoGPT lacks this architecture.
    """
    import torch

    from nanogpt_cli.model import homes

    theirs = _import(folder / "model.py" if folder.is_dir() else folder)
    config = model.config
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "dropout")
    if homes.home(config) != "gpt2" or config.activation != "gelu" or not config.tied:
        raise UserError(
            "nanoGPT has no model of this architecture", "it needs gelu and a tied head"
        )
    other = theirs.GPT(theirs.GPTConfig(**{name: getattr(config, name) for name in names}))
    other.load_state_dict(model.state_dict())
    other.eval()
    top_k = sampling.top_k or None

    def run(prompt: Sequence[int], new: int) -> object:
        with torch.no_grad():
            idx = torch.tensor([list(prompt)])
            return other.generate(idx, new, temperature=sampling.temperature, top_k=top_k)

    return run


def huggingface_transformers(model: GPT, sampling: Sampling) -> Rival:
    """``generate`` of the transformers library with its key/value cache.

    Raises:
        UserError: the library is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("transformers is not installed", "pip install transformers") from None
    import torch

    from nanogpt_cli.interop import huggingface
    from nanogpt_cli.interop.source import from_model

    library: Any = transformers  # partly untyped
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        huggingface.write(from_model(model, None), Path(folder), lambda _: None)
        other = library.AutoModelForCausalLM.from_pretrained(folder).eval()
    top_k = sampling.top_k or None

    def run(prompt: Sequence[int], new: int) -> object:
        idx = torch.tensor([list(prompt)])
        return other.generate(
            idx, max_new_tokens=new, min_new_tokens=new, do_sample=True, pad_token_id=0,
            temperature=sampling.temperature, top_k=top_k, use_cache=True,
        )  # fmt: skip

    return run


def _import(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("nanogpt_checkout_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path} is not nanoGPT's model.py", "give the folder of a checkout")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
