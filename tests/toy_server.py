"A server of chat completions that misbehaves as it is told."
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, n=1, **usage):
    return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "usage": usage or {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                       "choices": [{"index": k, "finish_reason": "stop", "message": {"role": "assistant", "content": text}} for k in range(n)]}).encode()


class Server:
    "An OpenAI-compatible endpoint on 127.0.0.1 that does what `act(number of the request, body)` says, and counts."
    def __init__(self, act):
        self.requests, self.times, self.headers, self.lock, server = [], [], [], threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers['content-length'])))
                with server.lock:
                    server.requests.append(body); server.times.append(time.monotonic()); server.headers.append({k.lower(): v for k, v in self.headers.items()})
                    n = len(server.requests)
                status, headers, text = act(n, body)
                if status == 'drip':  # A byte now and then, without end
                    self.send_response(200); self.send_header('content-length', '1000'); self.end_headers()
                    for _ in range(40):
                        try: self.wfile.write(b' '); self.wfile.flush()
                        except OSError: return
                        time.sleep(.1)
                    return
                self.send_response(status)
                for k, v in ({'content-type': 'application/json', 'content-length': str(len(text))} | headers).items(): self.send_header(k, v)
                self.end_headers()
                try: self.wfile.write(text)
                except OSError: return
                if 'content-length' in headers: self.close_connection = True  # Promised more than it sent

            def log_message(self, *_): pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_): pass  # Clients that were killed

        self.http = Quiet(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.http.server_port}/v1'
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self): return self
    def __exit__(self, *_): self.http.shutdown(); self.http.server_close()
