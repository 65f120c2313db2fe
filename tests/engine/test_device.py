"""Settings that reserve no GPU compute on the CPU, also on a machine that has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from deepspeed.accelerator import real_accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

from data_processing.errors import ConfigError
from evaluation.config import EvaluateConfig
from evaluation.job import EvaluationJob
from evaluation.logprobs import token_logprobs
from rlhf_core.batching.rows import TokenRow
from rlhf_core.cluster.actors import ModelSetup, PolicyWorker, ScoringWorker
from rlhf_core.device import device_for
from rlhf_core.events import EventLog
from rlhf_core.recipes.online.losses import ResponseLogprobs
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.reward_model import RewardModelScorer
from rlhf_core.rollout.base import Sampling, generate
from rlhf_core.rollout.hf_engine import HfGenerator
from rlhf_core.settings.training import EngineSettings, LoraSettings, OptimizerSettings, Packing
from tests.rewards.test_reward_model_scorer import reward_folder
from tests.tiny_models import tiny_model

ROOT = Path(__file__).resolve().parents[2]
ROWS = [TokenRow.from_prompt_response([5, 6, 7], [8, 9])]


@pytest.fixture
def a_gpu_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says on a machine with a GPU; whoever believes it and uses the GPU fails here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def a_gpu_in_deepspeeds_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """What DeepSpeed takes at its first import on such a machine."""
    monkeypatch.setattr(real_accelerator, "ds_accelerator", CUDA_Accelerator())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def setup(model: Path) -> ModelSetup:
    settings = EngineSettings(dtype="fp32")
    return ModelSetup(
        model, settings, LoraSettings(rank=0), OptimizerSettings(), 1, 0, 0, new_head=False, trust_remote_code=False
    )


def test_what_is_reserved_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (device_for(0.0).type, device_for(0.5).type, device_for(1.0).type) == ("cpu", "cuda", "cuda")


def test_a_gpu_that_is_reserved_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"engine.gpus_per_rank \(evaluate.gpus\) is 1, but torch .* sees no GPU"):
        device_for(1.0)


@pytest.mark.usefixtures("a_gpu_in_sight", "a_gpu_in_deepspeeds_sight")
@pytest.mark.parametrize("worker", [ScoringWorker(), PolicyWorker()], ids=["reference", "policy"])
def test_ranks_without_a_gpu_train_and_score_on_the_cpu(model: Path, worker: ScoringWorker) -> None:
    worker.setup(setup(model))
    assert worker.device.type == "cpu"
    assert worker.predict(ResponseLogprobs(1.0), ROWS)["logprobs"].isfinite().all()
    if dist.is_initialized():
        assert dist.get_backend() == "gloo"


@pytest.mark.usefixtures("a_gpu_in_sight")
def test_sampling_rewards_and_evaluation_without_a_gpu_run_on_the_cpu(model: Path, tmp_path: Path) -> None:
    sampler = HfGenerator(model, dtype="fp32", max_model_len=8, max_num_seqs=1, trust_remote_code=False)
    sampling = Sampling(temperature=1.0, max_new_tokens=2, n=1, greedy=True, stop_ids=())
    assert len(generate(sampler, [[5, 6]], sampling, 0)[0][0].response_ids) == 2
    scorer = RewardModelScorer(
        reward_folder(tmp_path, model), model, dtype="fp32", attention="sdpa", micro_batch_tokens=64, packing=Packing.auto
    )
    assert len(scorer.score([ScoredResponse("p", [], None, [5, 6], [7], "x")])) == 1
    job = EvaluationJob(
        config=EvaluateConfig(dtype="fp32"),
        model=model,
        model_name="model",
        base=model,
        data=tmp_path,
        reward_model=None,
        output=tmp_path,
        seed=0,
        events=EventLog(tmp_path / "events.jsonl"),
    )
    [logprobs] = token_logprobs(job, model, ROWS)
    assert logprobs.isfinite().all()


def test_one_place_decides_where_to_compute() -> None:
    files = [path for name in ("rlhf_core", "evaluation", "tasks") for path in (ROOT / name).rglob("*.py")]
    asking = [str(path.relative_to(ROOT)) for path in files if "cuda.is_available" in path.read_text(encoding="utf-8")]
    assert asking == ["rlhf_core/device.py"]
