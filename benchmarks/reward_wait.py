"""How much of a step waits for a reward service: one that takes 200 ms a response, asked 16 at a time, beside the 135M model.

    python benchmarks/reward_wait.py [--delay-ms 200] [--in-flight 16] [--rounds 6]

Prints the share of each step's time that nothing but the rewards was waited for (`seconds/rewards`), and what it would be were the
service asked only once all responses are there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import fmean
from typing import Any

import ray

from data_processing.config import ProceduresConfig
from data_processing.procedures.rows import procedures_rows
from data_processing.schemas import to_table, write_table
from rlhf_core.events import EventLog
from rlhf_core.models.packaged import fetch_named
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.run import run_online
from rlhf_core.settings.online import OnlineConfig
from tasks.runtime.contract.home import Home

PROMPTS, SAMPLES, NEW_TOKENS = 8, 4, 64


class Slow(BaseHTTPRequestHandler):
    """Worth its length, after a while."""

    delay_s = 0.2

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.delay_s * len(body["responses"]))
        answer = json.dumps({"rewards": [len(text) / 100 for text in body["responses"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--delay-ms", type=float, default=200.0)
    asked.add_argument("--in-flight", type=int, default=16)
    asked.add_argument("--rounds", type=int, default=6)
    given = asked.parse_args()
    Slow.delay_s = given.delay_ms / 1000
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(Path(scratch), f"http://127.0.0.1:{server.server_address[1]}", given.in_flight, given.rounds)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        run_online(job)
        lines = [json.loads(line) for line in job.events.path.read_text().splitlines()]
    rounds = [line["values"] for line in lines if line["type"] == "metrics" and line["step"]]
    responses = PROMPTS * SAMPLES
    naive = Slow.delay_s * responses / given.in_flight
    for number, values in enumerate(rounds, start=1):
        share = values["seconds/rewards"] / values["seconds/round"]
        print(
            f"round {number}: {values['seconds/round']:.1f} s, of which waiting for rewards {values['seconds/rewards']:.2f} s ({share:.1%})"
        )
    later = [values["seconds/rewards"] / values["seconds/round"] for values in rounds[1:]]
    print(
        f"mean without the first: {fmean(later):.1%}; asked after all {responses} responses are drawn it would be {naive:.2f} s more a round"
    )


def _job(folder: Path, url: str, in_flight: int, rounds: int) -> OnlineJob:
    rows = procedures_rows(ProceduresConfig(sft_rows=0, preference_pairs=0, prompt_rows=64, validation_rows=0, test_rows=0), 1)
    write_table("prompts", to_table("prompts", rows["prompts", "train"]), folder / "data" / "prompts" / "train.parquet")
    config = OnlineConfig.model_validate(
        {
            "method": "grpo",
            "steps": rounds,
            "prompts_per_step": PROMPTS,
            "samples_per_prompt": SAMPLES,
            "kl_coef": 0.0,
            "rewards": [{"kind": "http", "url": url, "in_flight": in_flight, "batch_size": 1}],
            "rollout": {"max_new_tokens": NEW_TOKENS},
            "max_length_tokens": 1024,
            "gates": {"max_truncated_fraction": 1.0},
        }
    )
    places = {name: folder / name for name in ("output", "resume")}
    for place in places.values():
        place.mkdir()
    return OnlineJob(
        config=config,
        model=fetch_named("smollm2-135m", Home.open().models),
        data=folder / "data",
        seed=1,
        events=EventLog(folder / "events.jsonl"),
        **places,
    )


if __name__ == "__main__":
    main()
