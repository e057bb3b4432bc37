"""Find and open data files behind a URL: HTTP with Python itself, other protocols with fsspec.

Rows are streamed from the network and never cached, so every run reads the present content. HTTP
does not go through fsspec: it would need aiohttp, which this package does not install.
"""

from __future__ import annotations

import http.client
import io
import urllib.request
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

from lora_sft.data.rows.data_files import (
    DataFile,
    check_links,
    find_fixed_base,
    has_data_name,
    name_source,
)
from lora_sft.errors import CapabilityError, DataError
from lora_sft.shown_text import make_one_line

if TYPE_CHECKING:
    from lora_sft.recipe import DatasetSection

HTTP_PORTS = {"http": 80, "https": 443}
TIMEOUT_SECONDS = 60
BUFFER_BYTES = 1 << 20


def is_url(location: str) -> bool:
    """Return whether the location of a data set is a URL."""
    return "://" in location


def find_remote_files(dataset: DatasetSection) -> list[DataFile]:
    """Return the files of a URL. It may be a folder or a glob if the protocol can list files.

    Raises:
        DataError: If the address cannot be read.
        CapabilityError: If fsspec needs a package that is not installed.
    """
    url = dataset.location
    if urlsplit(url).scheme.lower() in HTTP_PORTS:
        name = PurePosixPath(unquote(urlsplit(url).path)).name
        return [DataFile(name_source(dataset.path), name, partial(_open_http, url))]
    system, path = _connect(url)
    try:
        paths = _list_paths(system, path)
    except Exception as error:  # each protocol raises its own exceptions
        raise _make_remote_error(url, error) from error
    if "file" in system.protocol:  # a folder of this machine, written as a URL
        check_links(map(Path, paths), find_fixed_base(path))
    return [_make_file(dataset, system, found, is_named=found == path) for found in paths]


def _connect(url: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise CapabilityError(
            f"{urlsplit(url).scheme}:// needs a package that is not installed",
            name_source(url),
            make_one_line(str(error)) + ", or download the file and name its local path",
        ) from error
    except Exception as error:  # an unknown protocol, or its set-up failed
        raise _make_remote_error(url, error) from error
    return system, str(path)


def _list_paths(system: Any, path: str) -> list[str]:
    if "*" in path:
        return sorted(found for found in system.glob(path) if system.isfile(found))
    if system.isdir(path):
        return sorted(found for found in system.find(path) if _is_visible_data(found, path))
    return [path]


def _is_visible_data(found: str, folder: str) -> bool:
    inside = PurePosixPath(found.removeprefix(folder).lstrip("/"))
    return has_data_name(inside.name) and not any(part.startswith(".") for part in inside.parts)


def _make_file(dataset: DatasetSection, system: Any, path: str, *, is_named: bool) -> DataFile:
    source = dataset.path if is_named else str(system.unstrip_protocol(path))
    name = PurePosixPath(path).name
    return DataFile(name_source(source), name, partial(_open_with_fsspec, system, path))


def _open_http(url: str) -> BinaryIO:
    try:
        address = urlsplit(url)._replace(fragment="")
        opener = urllib.request.build_opener(_make_login(address))
        host = address.netloc.rpartition("@")[2]
        bare = address._replace(netloc=host).geturl()
        request = urllib.request.Request(bare, headers={"User-Agent": "lora-sft"})
        response = opener.open(request, timeout=TIMEOUT_SECONDS)
    except (ValueError, http.client.InvalidURL) as error:  # their texts may repeat a password
        raise OSError("the address is not valid") from error
    return io.BufferedReader(_HttpBody(response), BUFFER_BYTES)


def _make_login(address: SplitResult) -> urllib.request.BaseHandler:
    """Return the handler that sends user and password of an address (HTTP basic authentication).

    It sends them with the first request, and after a redirection only to the same server.

    Raises: ValueError if the port of the address is not a number.
    """
    manager = urllib.request.HTTPPasswordMgrWithPriorAuth()
    if address.username is not None:
        host = f"[{address.hostname}]" if ":" in str(address.hostname) else address.hostname
        # With its port, the server differs from the one without encryption on the same machine.
        server = f"{address.scheme}://{host}:{address.port or HTTP_PORTS[address.scheme]}/"
        user, password = unquote(address.username), unquote(address.password or "")
        manager.add_password(None, server, user, password, is_authenticated=True)
    return urllib.request.HTTPBasicAuthHandler(manager)


def _open_with_fsspec(system: Any, path: str) -> BinaryIO:
    try:
        stream = system.open(path, "rb")
    except OSError:
        raise
    except Exception as error:  # each protocol raises its own exceptions
        raise OSError(f"{type(error).__name__}: {error}") from error
    return io.BufferedReader(_FsspecBody(stream), BUFFER_BYTES)


class _HttpBody(io.RawIOBase):
    """The body of an HTTP response. Reading fails if it is shorter than its header states."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        num_bytes = int(self._response.readinto(buffer))
        if num_bytes == 0 and self._response.length:
            raise OSError(f"the connection broke {self._response.length} bytes before the end")
        return num_bytes

    def close(self) -> None:
        self._response.close()
        super().close()


class _FsspecBody(io.RawIOBase):
    """A file that fsspec opened. Exceptions of its protocol become OSError for the readers."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            data = self._stream.read(len(view))
        except OSError:
            raise
        except Exception as error:  # each protocol raises its own exceptions
            raise OSError(f"{type(error).__name__}: {error}") from error
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _make_remote_error(url: str, error: Exception) -> DataError:
    reason = str(error).strip() or type(error).__name__
    return DataError(
        f"the address cannot be read: {make_one_line(reason.splitlines()[0])}",
        name_source(url),
        "check the address and its credentials, and that this machine can reach it",
    )
