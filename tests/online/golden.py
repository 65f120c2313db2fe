"""Short seeded runs of every online method, and the rewards that they had, round by round: golden_curves.json.

python -m tests.online.golden
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.run import run_online
from tests.online.runs import metric, online_job, prompts_folder
from tests.tiny_models import tiny_model

FILE = Path(__file__).with_name("golden_curves.json")
ROUNDS = 12

# What each is given beside its name: a KL so small that the tiny model can go where the reward is.
RUNS: dict[str, dict[str, Any]] = {
    "ppo": {"kl_coef": 1e-3},
    "ppo in one loss": {"method": "ppo", "kl_place": "loss", "kl_coef": 0.05, "entropy_coef": 0.01},
    "reinforce": {"kl_coef": 0.01, "adaptive_kl": {"target_nats": 0.5, "horizon_responses": 64}},
    "reinforce_pp": {"kl_coef": 0.01},
    "reinforce_pp_baseline": {},
    "rloo": {"kl_coef": 0.01},
    "grpo": {},
    "grpo without clipping": {"method": "grpo", "clipping": False},
    "dr_grpo": {},
    "dapo": {"overlong_penalty": {"factor": 0.0}},
    "gspo": {},
    "cispo": {},
}


def golden_job(name: str, folder: Path) -> OnlineJob:
    """The run called `name`, below `folder`."""
    settings = {"method": name, **RUNS[name]}
    return online_job(folder, tiny_model(folder), prompts_folder(folder / "data"), steps=ROUNDS, **settings)


def main() -> None:
    """Run all, and write what they earned."""
    from tests.conftest import local_ray

    curves = {}
    with local_ray(), tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            job = golden_job(name, Path(folder) / name.replace(" ", "_"))
            run_online(job)
            curves[name] = [round(value, 4) for value in metric(job, "reward/mean")]
            print(name, curves[name], flush=True)
    FILE.write_text(
        "{\n" + ",\n".join(f" {json.dumps(name)}: {curve}" for name, curve in curves.items()) + "\n}\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
