"""Certificates of the operator and keys of the sites, made by openssl and ssh-keygen."""

from __future__ import annotations

from pathlib import Path

from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import PUBLIC, DeployError, Steps

#: Days for which a certificate is valid. Sites hold the authority's; the server's is renewed without a change there.
CA_DAYS, SERVER_DAYS = 3650, 825
_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes")


def authority(deployment: Deployment, steps: Steps) -> None:
    """Make the operator's certificate authority, valid for this deployment only."""
    steps.folder(deployment.ca_key.parent)
    steps.folder(deployment.ca.parent)
    steps.run(
        "openssl",
        "req",
        "-x509",
        *_EC,
        "-days",
        str(CA_DAYS),
        "-subj",
        f"/O=FCIT/CN=FCIT {deployment.host}",
        "-addext",
        "basicConstraints=critical,CA:TRUE,pathlen:0",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
        "-keyout",
        deployment.ca_key,
        "-out",
        deployment.ca,
    )


def server(deployment: Deployment, steps: Steps) -> None:
    """Make a new key and certificate for the door and the SuperLink behind it.

    Both are made beside those in force and take their places when they are whole: without the authority's key, which is
    kept offline, nothing changes. The certificate goes last, by which `fcit deploy up` sees that there is a new one.

    Raises:
        DeployError: the authority's key is not there, or openssl fails; the key and certificate in force stay.
    """
    if not steps.dry and not deployment.ca_key.is_file():
        raise DeployError(
            f"{deployment.ca_key} is not there, which makes certificates; put it back for as long as it takes"
        )
    key, certificate = (
        path.with_name(f"new-{path.name}") for path in (deployment.certificate_key, deployment.certificate)
    )
    request, extensions = certificate.with_suffix(".csr"), certificate.with_suffix(".ext")
    try:
        _signed(deployment, key, certificate, request, extensions, steps)
        steps.move(key, deployment.certificate_key)
        steps.move(certificate, deployment.certificate)
    finally:
        if not steps.dry:
            for left in (key, certificate, request, extensions):
                left.unlink(missing_ok=True)


def _signed(
    deployment: Deployment, key: Path, certificate: Path, request: Path, extensions: Path, steps: Steps
) -> None:
    """A key, and a certificate of the authority for it."""
    steps.run(
        "openssl",
        "req",
        *_EC,
        "-subj",
        f"/O=FCIT/CN={deployment.host[:64]}",
        "-keyout",
        key,
        "-out",
        request,
    )
    lines = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        "extendedKeyUsage=serverAuth",
        f"subjectAltName={deployment.names}",
        "subjectKeyIdentifier=hash",
        "authorityKeyIdentifier=keyid",
    ]
    steps.write(extensions, "\n".join(lines) + "\n")
    steps.run(
        "openssl",
        "x509",
        "-req",
        "-in",
        request,
        "-CA",
        deployment.ca,
        "-CAkey",
        deployment.ca_key,
        "-CAcreateserial",
        "-days",
        str(SERVER_DAYS),
        "-extfile",
        extensions,
        "-out",
        certificate,
    )


def node(deployment: Deployment, name: str, steps: Steps) -> None:
    """Make a site's key pair: the private half into its folder, the public one to the operator's keys.

    Flower takes NIST curves in OpenSSH format without a passphrase.
    """
    key = deployment.site(name) / "site.key"
    steps.folder(deployment.public_key(name).parent)
    steps.run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", f"fcit-site-{name}", "-f", key)
    steps.move(key.with_name("site.key.pub"), deployment.public_key(name), PUBLIC)
