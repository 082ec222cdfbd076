"""The server of the page."""

import hmac
import ipaddress
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from latentfaces.bounds import Interval
from latentfaces.errors import UserError
from latentfaces.signals import Stopped, handle_signals, stop

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read whenever a page is built or launched
MAX_UPLOAD = "50mb"
CSS = """
.small .grid-container { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) !important; }
.large .grid-container { grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)) !important; }
.small .grid-wrap, .large .grid-wrap { max-height: none !important; }
.enlarged img { width: 100%; height: 100%; object-fit: contain; }
"""
THEME = gr.themes.Soft(
    primary_hue="blue", neutral_hue="gray", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
"""Theme with fonts of the system. Those of gradio are loaded from other machines."""


@dataclass
class Server:
    """Server of a page, on this machine only by default.

    Args:
        host: address of the interface. Only those of this machine work without a token.
        port: TCP port.
        share: also serve under a public address of gradio.live.
        token: password of the page.
    """

    host: str
    port: Annotated[int, Interval(ge=1, le=65535)]
    share: bool
    token: str | None

    def __post_init__(self) -> None:
        if not self.token and (self.share or not is_loopback(self.host)):
            key = "task.share=true" if self.share else f"task.host={self.host}"
            raise UserError(f"{key} opens the page to others. Add task.token=PASSWORD.")

    def __call__(self, build_page: Callable[[], gr.Blocks]) -> None:
        """Build a page and serve it until Ctrl-C.

        Raises:
            UserError: the port is in use, or the address is not of this machine.
        """
        with tempfile.TemporaryDirectory(prefix="latentfaces-") as uploads:
            os.environ["GRADIO_TEMP_DIR"] = uploads  # of components that are built from now on
            page = build_page()
            try:
                with handle_signals(stop):
                    self.start(page)
                    threading.Event().wait()
            except Stopped:
                print("Stopped.")
            finally:
                page.close(verbose=False)

    def start(self, page: gr.Blocks) -> None:
        """Start the server, in other threads."""
        logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio's own requests to the page
        is_ipv6 = ":" in self.host
        try:
            # uvicorn would print its own line for an address that cannot be used.
            socket.create_server((self.host, self.port), family=socket.AF_INET6 if is_ipv6 else socket.AF_INET).close()
            page.launch(
                server_name=f"[{self.host}]" if is_ipv6 else self.host,
                server_port=self.port,
                share=self.share,
                auth=self.is_allowed if self.token else None,
                auth_message="Any user name, and the token as password." if self.token else None,
                prevent_thread_lock=True,
                theme=THEME,
                css=CSS,
                quiet=True,
                show_error=True,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=self.hosts)]},
                max_file_size=MAX_UPLOAD,
            )
        except OSError as error:
            address = f"{self.host}:{self.port}"
            raise UserError(f"{address} cannot be used. Choose another task.port or task.host.") from error
        print(f"Open {page.local_url} in a browser. Ctrl-C stops the page.", flush=True)

    @property
    def hosts(self) -> list[str]:
        """Accepted Host headers. Without a token, any other would let websites reach the page by DNS rebinding."""
        return ["*"] if self.token else [self.host, "localhost", "127.0.0.1", "[::1]"]

    def is_allowed(self, user: str, password: str) -> bool:
        """Return whether the password is the token. The user name has no effect."""
        return hmac.compare_digest(password.encode(), (self.token or "").encode())


def is_loopback(host: str) -> bool:
    """Return whether an address is of this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
