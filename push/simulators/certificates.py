"""A certificate authority of the simulators' own: made anew, trusted by nobody who is not told to."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE = timedelta(days=30)
LEEWAY = timedelta(days=1)
"""Certificates are valid from a day ago on, for clocks that differ."""


class Authority:
    """Issues certificates (EC, P-256) and writes them to a folder, keys included.

    `ca_file`: its own certificate, PEM, for clients to trust.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Push simulators")])
        certificate = self._unsigned(self._name, self._key)
        certificate = certificate.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        certificate = certificate.add_extension(_SIGNS, critical=True)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(self._signed(certificate).public_bytes(Encoding.PEM))

    def server_context(self) -> ssl.SSLContext:
        """What a server at 127.0.0.1 or localhost needs: a certificate of this authority, and ALPN for `h2` and
        `http/1.1`, in this order."""
        names = [x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName("localhost")]
        key, certificate = self._start("localhost")
        certificate = certificate.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = certificate.add_extension(_usage(ExtendedKeyUsageOID.SERVER_AUTH), critical=False)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._write("server.pem", key, certificate))
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    def client_certificate(self, topic: str) -> Path:
        """A provider's certificate for `topic`, PEM, its key included. The UID of the subject is the topic
        (developer.apple.com, "Establishing a certificate-based connection to APNs")."""
        key, certificate = self._start(f"Apple Push Services: {topic}", x509.NameAttribute(NameOID.USER_ID, topic))
        certificate = certificate.add_extension(_usage(ExtendedKeyUsageOID.CLIENT_AUTH), critical=False)
        return self._write(f"client-{topic}.pem", key, certificate)

    def _start(
        self, common_name: str, *more: x509.NameAttribute[str]
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.CertificateBuilder]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([*more, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = self._unsigned(subject, key)
        return key, certificate.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)

    def _unsigned(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(issuer_name=self._name, subject_name=subject, public_key=key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - LEEWAY).not_valid_after(now + LIFE)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)

    def _signed(self, certificate: x509.CertificateBuilder) -> x509.Certificate:
        return certificate.sign(self._key, SHA256())

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.CertificateBuilder) -> Path:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_bytes(private_pem(key) + self._signed(certificate).public_bytes(Encoding.PEM))
        return path


_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _usage(purpose: x509.ObjectIdentifier) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([purpose])


def private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """The key in PKCS #8, PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
