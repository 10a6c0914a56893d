"""`podium monitor` as a process: killed and started again, it has counted every row of the stream once."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc

from protos import monitoring_pb2 as pb
from protos.monitoring_pb2_grpc import MonitoringServiceStub
from server.core.versions import VersionKey
from server.monitoring.redis_sink import RedisSink, RedisWriter
from tests.feature_client.servers import Server, free_port, tcp_server
from tests.monitoring.rows import rows_of

ROOT = Path(__file__).parents[2]
KEY = VersionKey("fraud", 1)


class Monitor:
    """The process, and what it is asked."""

    def __init__(self, folder: Path, server: Server) -> None:
        model = folder / "models" / "fraud"
        if not model.exists():
            (model / "1").mkdir(parents=True)
            (model / "model.toml").write_text('[monitoring.quality]\noutput = "score"\n')
            (model / "1" / "model.onnx").write_bytes(b"never opened")
            (folder / "podium.toml").write_text(
                f'repository = {json.dumps(str(folder / "models"))}\nsettle_s = 0\n[monitoring]\nsink = "redis"\n'
                f'redis = "{server.url}"\ndir = {json.dumps(str(folder / "state"))}\n'
            )
        self.http = free_port()
        self.grpc = f"unix:{folder}/m.sock"
        self.command = [sys.executable, "-m", "server", "monitor", "--config", str(folder / "podium.toml")]
        self.command += ["--grpc-address", self.grpc, "--http-address", f"127.0.0.1:{self.http}"]
        self.process = subprocess.Popen(self.command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def learned(self) -> int:
        """How many rows it has counted; -1 while it does not answer."""
        with grpc.insecure_channel(self.grpc) as channel:
            try:
                report = MonitoringServiceStub(channel).GetDrift(pb.DriftRequest(model_name="fraud"), timeout=5)
            except grpc.RpcError:
                return -1
        return sum(each.learned_rows for each in report.versions)

    def until_learned(self, rows: int) -> None:
        until = time.monotonic() + 60
        while (found := self.learned()) != rows:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert found < rows, "rows were counted twice"
            assert time.monotonic() < until, f"{found} of {rows} rows"
            time.sleep(0.05)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


def test_a_monitor_that_is_killed_and_started_again_counts_every_row_once(tmp_path: Path) -> None:
    with tcp_server(tmp_path / "redis") as server:
        writers = [RedisWriter(server.url, "podium:samples", 10**7) for _ in range(2)]
        sink = RedisSink(writers[0], writers[1], lambda key: ((), {}))
        monitor = Monitor(tmp_path, server)
        sink.write([rows_of(100, 1, key=KEY)])
        monitor.until_learned(100)
        second = subprocess.run(monitor.command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (second.returncode, "another process monitors" in second.stderr) == (1, True)
        assert monitor.end(signal.SIGTERM) == 0
        assert (tmp_path / "state" / "stream.position").exists()
        sink.write([rows_of(50, 2, key=KEY)])
        monitor = Monitor(tmp_path, server)
        monitor.until_learned(150)
        assert monitor.end(signal.SIGKILL) == -signal.SIGKILL
        sink.write([rows_of(25, 3, key=KEY)])
        monitor = Monitor(tmp_path, server)
        monitor.until_learned(175)
        with grpc.insecure_channel(monitor.grpc) as channel:
            outcome = pb.Outcome(model_name="fraud", prediction_id="a", value=1.0)
            receipt: Any = MonitoringServiceStub(channel).ReportOutcome(outcome, timeout=20)
        assert receipt.status == pb.OutcomeReceipt.ACCEPTED
        assert server.command("XREVRANGE", "podium:samples", "+", "-", "COUNT", 1)[0][1][b"k"] == b"outcomes"
        with urllib.request.urlopen(f"http://127.0.0.1:{monitor.http}/metrics", timeout=20) as page:
            text = page.read().decode()
        assert 'podium_drift_state{arm="champion",model="fraud",state="learning",version="1"} 1.0' in text
        assert 'podium_sample_dropped_total{reason="trimmed",sink="stream"} 0.0' in text
        assert monitor.end(signal.SIGTERM) == 0
        sink.close()
