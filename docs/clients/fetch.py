#!/usr/bin/env python3
"""Calls the API for one organization, with the standard library alone.  fetch.py ORGANIZATION URL"""

import http.client
import json
import os
import socket
import sys
import urllib.error
import urllib.request


class Worker(http.client.HTTPConnection):
    """consentry on its Unix socket. The connection is kept and used again; make one for each thread."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def ask(self, method, path, headers=None):
        """Gives (token, tag), or raises RuntimeError with the problem's code, such as consent_lost."""
        try:
            self.request(method, path, headers=headers or {})
            answer = self.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # The worker was started anew, or closed a connection that nobody had used for long.
            self.close()
            self.request(method, path, headers=headers or {})
            answer = self.getresponse()
        body = json.load(answer)
        if answer.status != 200:
            raise RuntimeError(f"{body['code']}: {body.get('detail', body['title'])}")
        return body["access_token"], answer.headers["ETag"]

    def token(self, organization):
        return self.ask("GET", f"/v1/organizations/{organization}/token")

    def refreshed(self, organization, rejected):
        """A newer token than the one that `rejected` names: many callers cause one exchange."""
        return self.ask("POST", f"/v1/organizations/{organization}/token/refresh", {"If-Match": rejected})


def call(url, token):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def main(organization, url):
    worker = Worker(os.environ.get("CONSENTRY_SOCKET", "/run/consentry/consentry.sock"))
    token, tag = worker.token(organization)
    status, body = call(url, token)
    if status == 401:
        token, _ = worker.refreshed(organization, tag)
        status, body = call(url, token)
    sys.stdout.buffer.write(body)
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
