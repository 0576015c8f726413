"""Send an alert when attention of a training breaks: to the URL of a service, or to a server that prints it.

python examples/alerts.py [URL]
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import torch
from torch import nn

from attnwatch import AttentionRecorder, diagnose
from attnwatch.alerts import Alert, Alerts

STEPS = 60
RATE = 10.0  # far too high


class Printing(BaseHTTPRequestHandler):
    """Prints what is posted."""

    def do_POST(self):
        post = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(f"[{post['type']}] {post['title']}\n{post['message']}")
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def train(alerts: Alerts) -> None:
    """Train one layer at a rate at which it diverges."""
    layer = nn.MultiheadAttention(16, num_heads=2, batch_first=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE)
    known = set()
    with AttentionRecorder(layer, every_n_steps=2, total_steps=STEPS) as recorder:
        for step in range(STEPS):
            with recorder.step(step):
                tokens = torch.randn(4, 8, 16)
                loss = (layer(tokens, tokens, tokens, need_weights=False)[0] - tokens).square().mean()
                recorder.record_loss(loss)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            findings = [each for each in diagnose(recorder.history()).findings if not each.is_note]
            for finding in findings:
                if finding.kind not in known:
                    alerts.send(Alert.of(finding))
            known = {finding.kind for finding in findings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", help="of Apprise, or $NAME of an environment variable that holds it")
    url = parser.parse_args().url
    torch.manual_seed(0)
    with HTTPServer(("localhost", 0), Printing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        alerts = Alerts(url or f"json://localhost:{server.server_address[1]}")
        train(alerts)
        alerts.finish()
        server.shutdown()


if __name__ == "__main__":
    main()
