"""Images, masks and sound from files or bytes, the same way wherever a task, the data check or `predict` needs them.

A value is what an undecoded `datasets.Image` or `datasets.Audio` column holds: {"path": str | None, "bytes": bytes | None};
the bytes win. Each function raises MediaError, which names the file and says what is wrong with it.

Paths come from data, which others may have written. `accepted` decides which of them may be opened when a table is read;
`open_media` is the only place that opens one: files by their absolute paths, and http(s) URLs of the public internet without any credentials.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from sft_dist.recipe.files import irregular

if TYPE_CHECKING:
    from PIL.Image import Image

_WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N")  # one channel of 16 bits, which `convert` would cut off at 255
_ID_MODES = ("1", "L", "P", "I", *_WIDE_MODES)  # what holds one whole number a pixel
_ORIENTATION = 0x0112  # the EXIF tag
_PNM = "sft_dist_pnm"  # set in the `info` of an image whose integers Pillow has scaled to 16 bits
_LOSSY = "sft_dist_lossy"  # set in the `info` of an image whose pixels were changed by compression

MAX_PEAK = 8.0  # of decimal samples; full scale is 1, and a mix may exceed it
# Formats of pixels. Pillow hands others to programs (EPS to Ghostscript), or reads what the name does not say.
IMAGE_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
MAX_URL_BYTES = 512 * 2**20  # of one image or recording behind a URL
MAX_FILE_BYTES = 2 * 2**30  # of one image or recording in a file
MAX_SAMPLES = 2**29  # of a recording, over all channels: 2 GiB as decimal numbers
RATES = range(100, 1_000_001)  # samples a second
URL_TIMEOUT_S = 30.0  # without any answer
URL_DEADLINE_S = 300.0  # for the whole file
REFUSED = "refused:"  # begins the path of a cell that may not be opened


class MediaError(ValueError):
    """An image or sound that cannot be used."""


# ── paths in rows ───────────────────────────────────────────────────────────────────────────────────────────────────
def is_url(path: str) -> bool:
    return "://" in path or "::" in path


def accepted(path: str, folders: Sequence[str], allow_urls: bool) -> str:
    """The path in a table's cell as `open_media` takes it.

    A file in one of the folders or below, once symbolic links are followed, gets its absolute path; the relative path of one
    that is missing stays as it is, and is not opened. All else is marked REFUSED, but for http(s) URLs where they are allowed.
    """
    if is_url(path):
        return path if allow_urls and _is_web_address(path) else REFUSED + path
    path = next((posix for posix in (posix_path(path, folder) for folder in folders) if posix != path), path)
    files = [(folder, os.path.join(folder, path)) for folder in folders]
    for _, file in files:
        kind = irregular(file)
        if (kind or os.path.isfile(file)) and any(
            is_inside(os.path.realpath(file), os.path.realpath(home)) for home in folders
        ):
            return REFUSED + file if kind else file
    elsewhere = any(os.path.lexists(file) or not is_inside(file, folder) for folder, file in files)
    return REFUSED + path if elsewhere or os.path.isabs(path) or path.startswith(REFUSED) else path


def posix_path(path: str, folder: str | os.PathLike[str]) -> str:
    """A relative path that Windows wrote, with `/`; of an absolute one (`C:\\`, `\\\\server`) the name of its file. A path
    without backslashes, or of a file that has them in its name, is returned as it is."""
    if "\\" not in path or os.path.lexists(os.path.join(folder, path)):
        return path
    windows = PureWindowsPath(path)
    return windows.name if windows.anchor else windows.as_posix()


def is_inside(path: str, folder: str) -> bool:
    """Compares the paths as they are written, after `..` is resolved."""
    return os.path.commonpath([os.path.abspath(path), os.path.abspath(folder)]) == os.path.abspath(folder)


def require_accepted(value: Mapping[str, Any]) -> None:
    """Raises MediaError when the image or recording may not be opened."""
    if value.get("bytes") is None and str(value.get("path") or "").startswith(REFUSED):
        raise MediaError(_refusal(str(value["path"])))


def open_media(value: Mapping[str, Any]) -> BinaryIO:
    """A file of the bytes of an image or recording. Raises MediaError."""
    data, path = value.get("bytes"), str(value.get("path") or "")
    if data is not None:
        return io.BytesIO(data)
    if not path:
        raise MediaError("neither a file nor bytes are given")
    on_web = _is_web_address(path)
    if not on_web and (is_url(path) or not os.path.isabs(path)):
        raise MediaError(_refusal(path))
    if not on_web and (kind := irregular(path)):
        raise MediaError(f"{path}: cannot be read (it is {kind}, not a file)")
    try:
        if not on_web and (size := os.path.getsize(path)) > MAX_FILE_BYTES:
            raise MediaError(f"{path}: cannot be read ({size:,} bytes; at most {MAX_FILE_BYTES:,} of one file)")
        return io.BytesIO(_downloaded(path)) if on_web else open(path, "rb")
    except MediaError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MediaError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _refusal(path: str) -> str:
    path = re.sub("//[^/@]*@", "//***@", path.removeprefix(REFUSED))
    if is_url(path):
        allowed = "an http(s) URL without a password, and that only with data.allow_urls: true"
        return f"{path}: cannot be read (a cell names a file in the folder of its table, or {allowed})"
    if kind := irregular(path):
        return f"{path}: cannot be read (it is {kind}, not a file)"
    return f"{path}: cannot be read (no such file in the folder of its table or below, symbolic links followed)"


def _is_web_address(path: str) -> bool:
    """Whether it is http(s) without a user name or password, and names a host."""
    try:
        parts = urlsplit(path)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc and "::" not in path
        )
    except ValueError:
        return False


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects stay on the web."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not _is_web_address(newurl):
            raise urllib.error.URLError(f"redirected to {newurl.partition(':')[0]}, which is not allowed")
        _require_public(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also inside an address of IPv6 that stands for one of IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _TRANSLATED else None
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1] or translated
        if embedded is not None:
            return is_public(str(embedded))
    return ip.is_global and not ip.is_multicast


_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


def _require_public(url: str) -> None:
    """Raises OSError where the host of a URL is inside a network: rows could read what only this machine reaches. A name that
    cannot be resolved here is left to the proxy, where there is one."""
    parts = urlsplit(url)
    try:
        _public_addresses(str(parts.hostname), parts.port or parts.scheme)
    except socket.gaierror:
        if not urllib.request.getproxies():
            raise


def _public_addresses(host: str, port: int | str) -> list[tuple[Any, ...]]:
    """Returns (family, kind, protocol, name, address) of each address of a host. Raises OSError unless all are public."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if inside := sorted({str(address[0]) for *_, address in entries if not is_public(str(address[0]))}):
        raise OSError(f"{host} is {inside[0]}, an address inside a network; download what it serves")
    return list(entries)


def _connect(endpoint: tuple[str, int], timeout: Any = None, source: Any = None) -> socket.socket:
    """`socket.create_connection` to addresses that were checked: a name may be resolved to another one the next time."""
    addresses = _public_addresses(*endpoint)
    for *_, address in addresses[:-1]:
        try:
            return socket.create_connection(address[:2], timeout, source)
        except OSError:
            continue
    return socket.create_connection(addresses[-1][-1][:2], timeout, source)


def _direct(connection_class: Any) -> Any:
    """Makes connections that `_connect` opens."""

    def connection(host: str, **options: Any) -> Any:
        opened = connection_class(host, **options)
        opened._create_connection = _connect  # an attribute so that it can be replaced, as http.client says
        return opened

    return connection


class _PublicHTTP(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_direct(http.client.HTTPConnection), req)


class _PublicHTTPS(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_direct(http.client.HTTPSConnection), req, context=ssl.create_default_context())


def _downloaded(url: str) -> bytes:
    """A GET from the public internet without credentials: no token, no .netrc, no cookie."""
    _require_public(url)
    # Behind a proxy, connections are to the proxy, which the user's environment names.
    proxied = bool(urllib.request.getproxies())
    opener = urllib.request.OpenerDirector()  # not `build_opener`: that opens ftp:// and file:// too
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler if proxied else _PublicHTTP,
        urllib.request.HTTPSHandler if proxied else _PublicHTTPS,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _WebRedirects,
    ):
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", "sft-dist")]
    deadline = time.monotonic() + URL_DEADLINE_S
    content = bytearray()
    with opener.open(url, timeout=URL_TIMEOUT_S) as response:
        while data := response.read1(2**20):  # one packet or more, so that the deadline is met
            content += data
            if len(content) > MAX_URL_BYTES:
                raise OSError(f"larger than {MAX_URL_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise OSError(f"not complete after {URL_DEADLINE_S:g} s")
        if response.length:
            raise OSError(f"cut short: {response.length:,} bytes are missing")
    return bytes(content)


# ── images and sound ──────────────────────────────────────────────────────────────────────────────────────────────


def load_image(value: Mapping[str, Any]) -> Image:
    """The image in RGB, turned as its EXIF orientation says."""
    image = _opened(value)
    if image.mode in (*_WIDE_MODES, "I", "F"):
        from PIL import Image

        deep = image.mode in _WIDE_MODES or bool(image.info.get(_PNM))
        return Image.fromarray(_eight_bits(np.asarray(image), deep, name_of(value))).convert("RGB")
    # Transparent palettes warn on the direct way to RGB.
    return image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")


def _eight_bits(pixels: np.ndarray, deep: bool, name: str) -> np.ndarray:  # (height, width) uint8
    """Grey values as 8 bits. 16 bits (`deep`) are divided by 257. Integers of 32 bits are of 8 or 16 bits by their largest
    value, decimal numbers are in 0..1 or 0..255. Raises MediaError for any other range."""
    if not np.isfinite(pixels).all():
        raise MediaError(f"{name}: some of its pixels are NaN or infinite")
    low, high = float(pixels.min()), float(pixels.max())
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if low < 0 or high > (255 if is_float else 65535):
        ranges = "decimal numbers in 0..1 or 0..255" if is_float else "integers in 0..255 or 0..65535"
        raise MediaError(
            f"{name}: pixels of {low:g} to {high:g}; they must be {ranges}: scale the image to 8 or 16 bits"
        )
    unit = 257.0 if deep or high > 255 else 1 / 255 if is_float and high <= 1 else 1.0
    return np.rint(pixels / unit).astype(np.uint8)


class StoredSize(NamedTuple):
    """What the header of an image says, before it is turned."""

    width: int
    height: int
    orientation: int  # EXIF, 1 to 8; 1: upright

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height once it is turned."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def turn(self, box: Sequence[float]) -> list[float]:
        """The box x, y, width, height of the stored image in the upright one."""
        x, y, w, h = box
        right, bottom = self.width - x - w, self.height - y - h
        return {
            1: [x, y, w, h],
            2: [right, y, w, h],
            3: [right, bottom, w, h],
            4: [x, bottom, w, h],
            5: [y, x, h, w],
            6: [bottom, x, h, w],
            7: [bottom, right, h, w],
            8: [y, right, h, w],
        }[self.orientation]


def read_size(value: Mapping[str, Any]) -> StoredSize:
    """Reads the header alone. Raises MediaError."""
    from PIL import Image, UnidentifiedImageError

    with open_media(value) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                orientation = image.getexif().get(_ORIENTATION, 1)
                return StoredSize(*image.size, orientation if orientation in range(1, 9) else 1)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise MediaError(f"{name_of(value)}: not an image that can be read ({error})") from None


def load_mask(value: Mapping[str, Any]) -> np.ndarray:  # (height, width) int64
    """The class number of each pixel: the palette's index, or the grey value. Raises MediaError."""
    image = _opened(value)
    if image.info.get(_LOSSY):
        raise MediaError(
            f"{name_of(value)}: a mask stored as JPEG has lost its class numbers: compression blends them at every edge; "
            "export the masks as PNG from where they were drawn"
        )
    if image.mode not in _ID_MODES:
        kind = "decimal numbers" if image.mode == "F" else "colours"
        raise MediaError(
            f"{name_of(value)}: a mask holds one class number a pixel, as a palette or grey image; "
            f"this one is in {kind} ({image.mode}); replace each colour by the number of its class and save it as grey PNG"
        )
    return np.asarray(image).astype(np.int64)


def load_audio(value: Mapping[str, Any], rate: int) -> np.ndarray:  # (samples,) float32
    """One channel (the mean of all) at `rate` samples a second; a file of several channels or another rate is converted."""
    import soundfile

    try:
        with io.BytesIO(_bytes_of(value)) as file, soundfile.SoundFile(file) as opened:
            require_bounded(opened, value)
            sound, own_rate = opened.read(dtype="float32", always_2d=True), opened.samplerate
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: what has no header is taken for raw samples
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise MediaError(f"{name_of(value)}: not a sound that can be read ({reason})") from None
    if not len(sound):
        raise MediaError(f"{name_of(value)}: the recording is empty (0 samples)")
    if not np.isfinite(sound).all():
        raise MediaError(f"{name_of(value)}: some of its samples are not finite numbers")
    if (peak := float(np.abs(sound).max())) > MAX_PEAK:
        raise MediaError(
            f"{name_of(value)}: samples of up to {peak:,.0f} where decimal numbers lie between -1 and 1; "
            "divide them by the largest integer they were made from (32768 for 16 bits)"
        )
    mono = sound.mean(axis=1)
    if len(mono) / own_rate * rate > MAX_SAMPLES:
        raise MediaError(f"{name_of(value)}: too long ({len(mono) / own_rate:,.0f} s at {rate:,} Hz)")
    if own_rate != rate:
        import soxr

        mono = soxr.resample(mono, own_rate, rate)
        if not len(mono):
            raise MediaError(f"{name_of(value)}: too short to be resampled ({len(sound)} samples at {own_rate} Hz)")
    return np.ascontiguousarray(mono, dtype=np.float32)


def require_bounded(header: Any, value: Mapping[str, Any]) -> None:
    """Raises MediaError for a rate that no recording has, and for more samples than fit into memory, whatever the file holds of
    those that its header claims. `header`: what `soundfile` says of it."""
    if header.samplerate not in RATES:
        raise MediaError(
            f"{name_of(value)}: {header.samplerate:,} samples a second; recordings have {RATES.start:,} to {RATES.stop - 1:,}"
        )
    if (count := header.frames * header.channels) > MAX_SAMPLES:
        raise MediaError(f"{name_of(value)}: its header claims {count:,} samples; at most {MAX_SAMPLES:,} are read")


def name_of(value: Mapping[str, Any]) -> str:
    """What the image or sound is called in a message."""
    return (
        str(value.get("path") or "").removeprefix(REFUSED) or f"(no file name, {len(value.get('bytes') or b'')} bytes)"
    )


def _opened(value: Mapping[str, Any]) -> Image:
    """The whole image in memory, so that a file cut short is noticed here, turned upright."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    data = _bytes_of(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF blocks and large images; what matters is raised
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                image.load()
                image.info[_LOSSY] = image.format in ("JPEG", "MPO")
                image.info[_PNM] = image.format == "PPM"
                return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise MediaError(f"{name_of(value)}: not an image of a known format") from None
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name_of(value)}: too large an image ({error})") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:  # each format has its own
        raise MediaError(f"{name_of(value)}: a damaged image ({error})") from None


def _bytes_of(value: Mapping[str, Any]) -> bytes:
    with open_media(value) as file:
        try:
            data = file.read()
        except OSError as error:
            raise MediaError(f"{name_of(value)}: cannot be read ({error.strerror})") from None
    if not data:
        raise MediaError(f"{name_of(value)}: the file is empty")
    return data
