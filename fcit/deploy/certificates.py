"""Certificates of the operator and keys of the sites, made by openssl and ssh-keygen."""

from __future__ import annotations

from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import PUBLIC, Steps

#: Days a certificate is good for. Sites hold the authority's; the server's is renewed without telling them.
CA_DAYS, SERVER_DAYS = 3650, 825
_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes")


def authority(deployment: Deployment, steps: Steps) -> None:
    """Make the operator's certificate authority, good for this deployment only."""
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
    """Make a new key and certificate for the door and the SuperLink behind it."""
    request, extensions = deployment.certificate.with_suffix(".csr"), deployment.certificate.with_suffix(".ext")
    steps.run(
        "openssl",
        "req",
        *_EC,
        "-subj",
        f"/O=FCIT/CN={deployment.host[:64]}",
        "-keyout",
        deployment.certificate_key,
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
        deployment.certificate,
    )
    if not steps.dry:
        request.unlink()
        extensions.unlink()


def node(deployment: Deployment, name: str, steps: Steps) -> None:
    """Make a site's key pair: the private half into its folder, the public one to the operator's keys.

    Flower takes NIST curves in OpenSSH format without a passphrase.
    """
    key = deployment.site(name) / "site.key"
    steps.folder(deployment.public_key(name).parent)
    steps.run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", f"fcit-site-{name}", "-f", key)
    steps.move(key.with_name("site.key.pub"), deployment.public_key(name), PUBLIC)
