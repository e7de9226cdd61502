"""`fcit client check SITE.yaml`: everything a site needs, step by step, before it is started.

Nothing is sent anywhere, the site's folder is made if it is missing, and nothing else is changed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from clients.site import policy
from clients.site.supervisor import STATE, environment
from fcit import __version__
from fcit.config import Backbone
from fcit.config import site as sites
from fcit.config.site import Site, SiteTask
from fcit.data.dataset import Usable
from fcit.data.formats import read_test, read_train_file
from fcit.data.formats.files import text_only
from fcit.data.images.opening import image_path
from fcit.data.images.verdicts import ImageVerdicts
from fcit.data.spec import read_spec
from fcit.deploy import app as bundle
from fcit.deploy import clock
from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import Steps
from fcit.deploy.watched import read_state
from fcit.doctor.models import check_models
from fcit.errors import ConfigError, DataError, FCITError
from fcit.io import bounded
from fcit.models.places import locate
from fcit.privacy import accountant
from fcit.runs.environment import LIBRARIES, SOMETIMES, versions

#: The thing checked, whether it is fine, and a sentence.
Finding = tuple[str, bool, str]

_DAYS_LEFT = 30  # of a certificate, below which it is spoken of
_DISK = 2 * 2**30  # bytes
_TIMEOUT = 10.0


def check(path: str | os.PathLike[str]) -> Iterator[Finding]:
    """Check a site, one finding after another; the first that is not fine is the one to mend first."""
    if not bounded.is_file(Path(path)):
        where = "it comes with the folder that the operator hands over (`fcit deploy init`)"
        yield "SITE.yaml", False, f"{path}: no such file; {where}"
        return
    try:
        site = sites.load(path)
    except ConfigError as error:
        yield "SITE.yaml", False, str(error)
        return
    yield "SITE.yaml", True, f"site {site.name}, stream: {site.stream}, worker: {site.worker}"
    yield key(site)
    trusted = list(authority(site))
    yield from trusted
    if all(fine for _, fine, _ in trusted):
        yield from door(site)
    yield from apps(site)
    own = list(home(site))
    yield from own
    yield port(site)
    yield from data(site, keep=own[0][1])
    yield from benchmark(site)
    yield model(site)
    yield device(site)
    yield from libraries()
    if site.max_record_epsilon is not None:
        yield records(site)


def key(site: Site) -> Finding:
    """The private key: there, private, of the kind Flower takes; its public half's fingerprint."""
    file = Path(site.key)
    if not file.is_file():
        return "key", False, f"{file}: not there; the operator's `fcit deploy init` writes it"
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        return "key", False, f"{file}: others can read it (mode {mode:03o}); `chmod 600 {file}`"
    try:
        private = load_ssh_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        return "key", False, f"{file}: not an OpenSSH private key without passphrase ({error})"
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        return "key", False, f"{file}: Flower takes keys of kind ecdsa only; `ssh-keygen -t ecdsa -b 384 -N '' -f KEY`"
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(public)).digest()).decode().rstrip("=")
    return "key", True, f"fingerprint SHA256:{digest}; the operator has registered it if `ssh-keygen -lf` there says so"


def authority(site: Site) -> Iterator[Finding]:
    """The certificate of the operator's authority."""
    try:
        certificates = x509.load_pem_x509_certificates(Path(site.ca).read_bytes())
    except (OSError, ValueError) as error:
        yield "ca", False, f"{site.ca}: no certificate can be read ({error}); ask the operator for tls/ca.crt"
        return
    for certificate in certificates:
        subject = certificate.subject.rfc4514_string()
        good, text = _validity(certificate)
        yield "ca", good, f"{subject}: {text}"


def _validity(certificate: x509.Certificate) -> tuple[bool, str]:
    now = datetime.now(UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    span = f"valid {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    if now < first:
        return False, f"{span}: not yet; is this machine's clock right ({now:%Y-%m-%d %H:%M} UTC)?"
    if now > last:
        return False, f"{span}: it has run out; ask the operator for a new one"
    days = (last - now).days
    return True, f"{span}" + (f", {days} days left: tell the operator" if days < _DAYS_LEFT else "")


def door(site: Site) -> Iterator[Finding]:
    """The way to the operator's door: name, connection, certificate."""
    host, _, port = site.superlink.rpartition(":")
    host = host.strip("[]")
    try:
        address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, OverflowError, UnicodeError) as error:
        yield "door: name", False, f"{host} is not found ({error}); ask the operator, or add it to /etc/hosts"
        return
    yield "door: name", True, f"{host} is {address}"
    try:
        connection = socket.create_connection((host, int(port)), timeout=_TIMEOUT)
    except OSError as error:
        problem = f"{site.superlink} does not answer ({error}); this machine must be let out to TCP port {port} there"
        yield "door: connection", False, problem
        return
    yield "door: connection", True, f"TCP {site.superlink}"
    context = ssl.create_default_context(cafile=site.ca)
    try:
        with connection, context.wrap_socket(connection, server_hostname=host) as secure:
            given = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
            good, text = _validity(given)
            yield "door: certificate", good, f"{secure.version()}, for {host}, {text}"
            yield _clocks(secure, host)
    except ssl.SSLCertVerificationError as error:
        why = f"{error.verify_message}; the door's certificate must be made by {site.ca} and be for {host}"
        yield "door: certificate", False, why
    except (OSError, ValueError) as error:
        yield "door: certificate", False, f"{site.superlink} does not speak TLS as it should ({error})"


def _clocks(secure: ssl.SSLSocket, host: str) -> Finding:
    """This machine's clock beside the door's."""
    try:
        ahead = clock.told(secure, host)
    except (OSError, ValueError) as error:
        return "clock", False, f"the door does not tell the time ({error}); is {host} the operator's door?"
    wrong = clock.problem(ahead)
    if wrong is not None:
        return "clock", False, wrong
    remark = "; set it before that becomes more" if clock.noticeable(ahead) else ""
    return "clock", True, f"{clock.difference(ahead)} the door's{remark}"


def installed_app() -> str:
    """The hash of the app that belongs to the fcit installed here.

    Raises:
        FCITError: it cannot be built.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return bundle.write(Deployment(Path(folder), "localhost"), Steps())


def apps(site: Site) -> Iterator[Finding]:
    """Which apps may run, and whether that is the one installed here."""
    if not site.apps:
        yield "apps", False, "none is pinned, every order will be refused; the operator's `fcit deploy init` prints it"
        return
    try:
        installed = installed_app()
    except FCITError as error:
        yield "apps", False, f"{len(site.apps)} pinned; the installed one cannot be built to compare ({error})"
        return
    others = [app for app in site.apps if app != installed]
    if installed in site.apps:
        more = f"; also pinned: {', '.join(others)}" if others else ""
        yield "apps", True, f"{installed} is pinned and what is installed here{more}"
        return
    yield (
        "apps",
        False,
        f"pinned: {', '.join(others)}; installed here: {installed}. Operator and site must have the same "
        "version of fcit; install theirs, or agree with them on the hash to pin",
    )


def data(site: Site, keep: bool) -> Iterator[Finding]:
    """The data root, and with ``stream: site`` every task's records and images; to ``keep`` what was found spares
    the site from looking at every image again."""
    root = Path(site.data_root)
    if bounded.is_file(root):
        yield "data", False, f"data_root: {root} is a file; name the folder it lies in"
        return
    if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        needed = site.stream == "site" or site.benchmark is not None
        made = "" if needed else " yet; a built-in benchmark is rendered there with the first order"
        yield "data", not needed, f"{root}: no such folder{made}"
        return
    yield "data", True, str(root)
    cache = Path(environment(site)["FCIT_CACHE"]) / "images" if keep else None
    for number, task in enumerate(site.tasks):
        yield from _task(root, number, task, cache, site.max_bad_share)


def _task(root: Path, number: int, task: SiteTask, cache: Path | None, share: float) -> Iterator[Finding]:
    label = f"task {number}"
    base = root.resolve()
    names = (task.train, task.test, task.references, task.images)
    outside = [name for name in names if name is not None and not (base / name).resolve().is_relative_to(base)]
    if outside:
        yield label, False, f"{outside[0]}: a link leads out of {root}; only what is inside is opened"
        return
    images = root / task.images
    try:
        survey = read_train_file(text_only(root / task.train))
        if not images.is_dir() and any(record is not None and record.images for record in survey.records):
            yield label, False, f"{images}: no such folder (images)"
            return
        usable = Usable(survey, ImageVerdicts(images, cache))
        problems = usable.excess(share)
        good = f"{task.train}: {len(usable.records)} records, {usable.skipped} passed over"
        yield f"{label} train", not problems, "\n     ".join(problems[:5] + problems[-1:]) if problems else good
        questions = read_test(text_only(root / task.test), root / task.references if task.references else None)
        for question in questions:
            for image in question.images:
                image_path(images, image)
        yield f"{label} test", True, f"{task.test}: {len(questions)} questions"
    except DataError as error:
        yield label, False, str(error)


def benchmark(site: Site) -> Iterator[Finding]:
    """The site's own benchmark file, if SITE.yaml names one."""
    if site.benchmark is None:
        return
    try:
        spec = read_spec(site.benchmark)
    except FCITError as error:
        yield "benchmark", False, str(error)
        return
    yield "benchmark", True, f"{site.benchmark}: {len(spec.datasets)} data sets"


def device(site: Site) -> Finding:
    """The device that SITE.yaml names; which one the server orders is known with the first order only."""
    import torch  # slow to import

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = f"torch finds {gpus} CUDA GPUs here" if gpus else "torch finds no CUDA GPU here"
    if site.device is None:
        return "device", True, f"as ordered; {known}: with an order for one that is missing, set `device`"
    if site.device == "cpu":
        return "device", True, site.device
    if site.device == "auto" and gpus:
        return "device", True, f"auto, {gpus} GPUs"
    number = int(site.device.partition(":")[2] or 0)
    if number < gpus:
        return "device", True, f"{site.device}, {torch.cuda.get_device_name(number)}"
    return "device", False, f"device: {site.device}, but {known}; set `device: cpu`, or install a CUDA build of torch"


def port(site: Site) -> Finding:
    """The loopback port between SuperNode and worker: free, or this site's that runs already."""
    if read_state(site.folder / STATE) is not None:
        return "port", True, f"{site.inner}, used by this site, which runs"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((site.address, site.port))
        except OSError as error:
            who = "`ss -ltnp` shows who has it; choose another `port` in SITE.yaml"
            return "port", False, f"{site.inner} cannot be listened on ({error.strerror}); {who}"
    return "port", True, f"{site.inner} is free"


def model(site: Site) -> Finding:
    """Whether backbone and identity encoder would load whole; their weights are read with the first order."""
    for name, folder in (("model", site.model), ("identity", site.identity)):
        if folder is not None and not (Path(folder) / "config.json").is_file():
            return "model", False, f"{name}: {folder} holds no config.json; give the folder of a downloaded model"
    tiny = locate("fcit-tiny", site.identity)  # an identity encoder that only an order names is not looked at
    chosen = Backbone(model=site.model or "fcit-tiny", identity=tiny[1], conversation="vicuna_v1")
    checked = check_models(chosen, sees=False)
    if checked.problems:
        return "model", False, "; ".join(checked.problems)
    text = site.model or f"fcit-tiny, {tiny[0]}; another one only with `model`"
    return "model", True, text + (f", identity {site.identity}" if site.identity else "")


def home(site: Site) -> Iterator[Finding]:
    """The site's own folder: writable, private, with room."""
    folder = site.folder
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield "home", False, f"{folder}: cannot be written ({error})"
        return
    mode = folder.stat().st_mode & 0o777
    if mode & 0o007:
        yield "home", False, f"{folder}: everybody can look into it (mode {mode:03o}); `chmod 700 {folder}`"
    else:
        yield "home", True, f"{folder}, mode {mode:03o}"
    free = shutil.disk_usage(folder).free
    yield "disk", free >= _DISK, f"{free / 2**30:.1f} GiB free" + ("" if free >= _DISK else "; at least 2 are needed")


def records(site: Site) -> Finding:
    """The site's account of what was spent of its records' privacy."""
    try:
        accountant.require("max_record_epsilon")
        spent = policy.terms(site).records.spent()
    except FCITError as error:
        return "record privacy", False, str(error)
    sums = ", ".join(f"{epsilon:.3g} of {name}" for name, epsilon in spent.items()) or "nothing"
    return "record privacy", True, f"spent of epsilon {site.max_record_epsilon:g}, over all runs: {sums}"


def libraries() -> Iterator[Finding]:
    """Library versions; the operator's are compared with them before round 0."""
    known = {"fcit": __version__, **versions()}
    texts = [f"{name} {version}" for name, version in known.items() if name != "ray"]  # no Ray at a site
    missing = [name for name in LIBRARIES if name not in known and name not in SOMETIMES]
    if missing:
        yield "libraries", False, f"missing: {', '.join(missing)}; install fcit again"
    else:
        yield "libraries", True, ", ".join(texts)
