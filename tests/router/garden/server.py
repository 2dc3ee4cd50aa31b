"""The peers written in Python, one file for all: `python server.py PEER PORT`.

Run by an interpreter that has them. Each answers every request with what it understood: the method, the
target and the body, in JSON.
"""

import asyncio
import base64
import json
import sys


def understood(method, target, body):
    told = {"method": method, "target": target, "body": base64.b64encode(body).decode()}
    return json.dumps(told).encode()


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    query = scope["query_string"].decode()
    target = scope["raw_path"].decode() + ("?" + query if query else "")
    content = understood(scope["method"], target, body)
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": content})


def wsgi(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    target = environ.get("RAW_URI") or environ["PATH_INFO"]
    content = understood(environ["REQUEST_METHOD"], target, environ["wsgi.input"].read(length))
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
    start_response("200 OK", fields)
    return [content]


def uvicorn(port, http):
    from uvicorn import run

    run(asgi, host="127.0.0.1", port=port, http=http, log_level="error", lifespan="off")


def hypercorn(port):
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.errorlog = None
    asyncio.run(serve(asgi, config))


def gunicorn(port):
    from gunicorn.app.base import BaseApplication

    class Application(BaseApplication):
        def load_config(self):
            self.cfg.set("bind", f"127.0.0.1:{port}")
            self.cfg.set("worker_class", "gthread")  # the default worker closes after each answer
            self.cfg.set("loglevel", "critical")
            self.cfg.set("control_socket_disable", True)

        def load(self):
            return wsgi

    Application().run()


def waitress(port):
    from waitress import serve

    serve(wsgi, host="127.0.0.1", port=port, _quiet=True)


def aiohttp(port):
    from aiohttp import web

    async def told(request):
        content = understood(request.method, request.raw_path, await request.read())
        return web.Response(body=content, content_type="application/json")

    application = web.Application(client_max_size=1 << 26)
    application.router.add_route("*", "/{path:.*}", told)
    web.run_app(application, host="127.0.0.1", port=port, print=None, access_log=None)


def tornado(port):
    from tornado.httpserver import HTTPServer

    async def main():
        from tornado.web import Application, RequestHandler

        class Told(RequestHandler):
            def prepare(self):
                self.set_header("Content-Type", "application/json")
                self.finish(understood(self.request.method, self.request.uri, self.request.body))

        HTTPServer(Application([("/.*", Told)])).listen(port, "127.0.0.1")
        await asyncio.Event().wait()

    asyncio.run(main())


PEERS = {
    "uvicorn-httptools": lambda port: uvicorn(port, "httptools"),
    "uvicorn-h11": lambda port: uvicorn(port, "h11"),
    "hypercorn": hypercorn,
    "gunicorn": gunicorn,
    "waitress": waitress,
    "aiohttp": aiohttp,
    "tornado": tornado,
}

if __name__ == "__main__":
    PEERS[sys.argv[1]](int(sys.argv[2]))
