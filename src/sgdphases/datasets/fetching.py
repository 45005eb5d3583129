"""Published files: found in the user's folder, or downloaded."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdphases.datasets.arrays import digest_of, naming
from sgdphases.datasets.progress import Progress, format_bytes
from sgdphases.datasets.work_folder import WorkFolder
from sgdphases.errors import InputError

logger = logging.getLogger(__name__)

CONNECT_SECONDS, SILENT_SECONDS = 10, 60
# A connection that breaks is taken up again where it broke, so many times for each file.
MOST_ATTEMPTS = 5
# A connection that breaks loses the chunk that it was about to give.
CHUNK_BYTES = 2**16

INSTALL = "install what it needs with: pip install 'sgdphases[datasets]'"


@dataclass(frozen=True)
class PublishedFile:
    """A file as its authors publish it.

    Attributes:
        names: What it is called in a folder of downloaded files; the first is the usual name.
        url: Where it is published.
        num_bytes: Its size, None where that is not known.
        checksum: Its digest in hexadecimal, None where that is not known.
        algorithm: Of the digest, as `hashlib` names it.
    """

    names: tuple[str, ...]
    url: str
    num_bytes: int | None = None
    checksum: str | None = None
    algorithm: str = "sha256"


def locate(file: PublishedFile, folder: Path | None) -> Path | None:
    """Look for a published file in a folder.

    Args:
        file: The file.
        folder: The user's folder, or None.

    Returns:
        Its path; None where it is not there.
    """
    if folder is None:
        return None
    return next((folder / name for name in file.names if (folder / name).is_file()), None)


def check_manual_dir(manual_dir: Path | None) -> None:
    """Refuse a manual_dir that is no folder."""
    if manual_dir is not None and not manual_dir.is_dir():
        raise InputError(f"{manual_dir}: no such folder; manual_dir must hold the official files")


def check_content(path: Path, file: PublishedFile) -> None:
    """Compare a file with what is known of the published one.

    Args:
        path: Where it lies.
        file: What it should be.

    Raises:
        InputError: Its size or its checksum is another.
    """
    found_bytes = path.stat().st_size
    if file.num_bytes is not None and found_bytes != file.num_bytes:
        fault = "truncated" if found_bytes < file.num_bytes else "not the official file"
        raise InputError(
            f"{path}: {fault}: {found_bytes} bytes found, {file.num_bytes} expected; "
            f"download it again from {file.url}"
        )
    if file.checksum is not None:
        found = digest_of(path, file.algorithm)
        if found != file.checksum:
            name = {"sha256": "SHA-256", "md5": "MD5"}[file.algorithm]
            raise InputError(
                f"{path}: wrong content: {name} {found} found, {file.checksum} expected; "
                f"download it again from {file.url}"
            )


def fetch(files: Sequence[PublishedFile], work: WorkFolder, manual_dir: Path | None) -> list[Path]:
    """Find published files in the user's folder, and download those that are not there.

    What an earlier attempt downloaded is kept, and a download that broke off is continued.

    Args:
        files: The files.
        work: Where downloads go.
        manual_dir: The user's folder of downloaded files, or None.

    Returns:
        Where they lie, each of the published size and checksum where these are known.

    Raises:
        InputError: A file is damaged, or can neither be found nor downloaded.
    """
    check_manual_dir(manual_dir)
    found = {file: _find(file, work, manual_dir) for file in files}
    for file, path in found.items():
        if path is not None:
            try:
                check_content(path, file)
            except InputError:
                if path.parent == work.downloads:  # to be downloaded again
                    path.unlink()
                raise
    missing = [file for file, path in found.items() if path is None]
    if missing:
        logger.info("%s: downloading %s (%s)", work.dataset, _names(missing), _where(manual_dir))
        begun = sum(_size(_partial(file, work)) for file in missing)
        work.require_space(sum(file.num_bytes or 0 for file in missing) - begun)
    while missing:
        try:
            found[missing[0]] = _download(missing[0], work)
        except _DownloadError as error:
            raise _missing_error(missing, str(error), work, manual_dir) from error
        missing.pop(0)
    return [path for path in found.values() if path is not None]


def require_reachable(
    files: Sequence[PublishedFile], work: WorkFolder, manual_dir: Path | None
) -> None:
    """Make sure that files which are to be fetched later can be, before long work begins.

    Args:
        files: The files.
        work: Where downloads go.
        manual_dir: The user's folder of downloaded files, or None.

    Raises:
        InputError: Some are in neither folder, and there is no network.
    """
    missing = [file for file in files if _find(file, work, manual_dir) is None]
    if missing:
        requests = _import_requests(work)
        try:
            requests.head(
                missing[0].url,
                timeout=CONNECT_SECONDS,
                allow_redirects=True,
                auth=_without_credentials,
            )
        except requests.RequestException as error:
            raise _missing_error(missing, "no network", work, manual_dir) from error


def _find(file: PublishedFile, work: WorkFolder, manual_dir: Path | None) -> Path | None:
    return locate(file, manual_dir) or locate(file, work.downloads)


def _missing_error(
    missing: Sequence[PublishedFile], why: str, work: WorkFolder, manual_dir: Path | None
) -> InputError:
    place = "a folder and give it as manual_dir" if manual_dir is None else str(manual_dir)
    return InputError(
        f"dataset {work.dataset}: {_names(missing)} missing ({_where(manual_dir)}) and {why}; put "
        f"{', '.join(file.url for file in missing)} into {place}, or run again with network access"
    )


def _names(files: Sequence[PublishedFile]) -> str:
    return ", ".join(file.names[0] for file in files)


def _where(manual_dir: Path | None) -> str:
    return "no manual_dir given" if manual_dir is None else f"not in {manual_dir}"


def _import_requests(work: WorkFolder) -> Any:
    try:
        import requests
    except ImportError as error:
        raise InputError(f"dataset {work.dataset}: {error}; {INSTALL}") from error
    return requests


class _DownloadError(Exception):
    """Why a file could not be downloaded."""


def _download(file: PublishedFile, work: WorkFolder) -> Path:
    """Download a file, from where an earlier attempt stopped."""
    requests = _import_requests(work)
    target, partial = work.downloads / file.names[0], _partial(file, work)
    for attempt in range(MOST_ATTEMPTS):
        before = _size(partial)
        try:
            _continue_download(file, partial, work)
            break
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            if _size(partial) > before and attempt + 1 < MOST_ATTEMPTS:
                logger.info("%s: the connection broke; trying again", target.name)
                continue
            is_begun = f" (download stopped after {format_bytes(_size(partial))})"
            raise _DownloadError(f"no network{is_begun if partial.exists() else ''}") from error
        except requests.RequestException as error:
            raise _DownloadError(f"the download failed ({error})") from error
    try:
        check_content(partial, file)
    except InputError:
        # It would only be continued, and damaged again.
        partial.unlink()
        raise
    finally:
        _tag_of(partial).unlink(missing_ok=True)
    return partial.replace(target)


def _continue_download(file: PublishedFile, partial: Path, work: WorkFolder) -> None:
    import requests

    start = _size(partial)
    # A length of what was downloaded means its bytes as they are, not compressed for the way.
    headers = {"Accept-Encoding": "identity"}
    if start and _tag_of(partial).is_file():
        # Without the tag, the rest of a file that has changed would be put to a piece of the old.
        headers |= {"Range": f"bytes={start}-", "If-Range": _tag_of(partial).read_text()}
    with requests.get(
        file.url,
        headers=headers,
        stream=True,
        timeout=(CONNECT_SECONDS, SILENT_SECONDS),
        auth=_without_credentials,
    ) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # there is nothing after what is there; its size and checksum are yet compared
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            start = 0
        length = int(response.headers.get("Content-Length", 0))
        work.require_space(length)
        if tag := response.headers.get("ETag"):
            _tag_of(partial).write_text(tag)
        progress = Progress(f"{file.names[0]}: downloading", start + length, "bytes", start)
        with naming(partial), partial.open("ab" if start else "wb") as output:
            for chunk in response.iter_content(CHUNK_BYTES):
                output.write(chunk)
                progress.update(output.tell())
            if length and output.tell() != start + length:
                raise requests.ConnectionError(f"{output.tell()} of {start + length} bytes came")


def _without_credentials(request: Any) -> Any:
    """Stands where `requests` would otherwise look for a password in ~/.netrc."""
    return request


def _partial(file: PublishedFile, work: WorkFolder) -> Path:
    return work.downloads / f"{file.names[0]}.part"


def _tag_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
