"""Path validation by Python's cryptography: usage `validate.py DIRECTORY`."""

import pathlib
import sys

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

TIERS = ["foundation", "enterprise", "advanced"]


def load(name):
    return x509.load_pem_x509_certificates((pathlib.Path(sys.argv[1]) / name).read_bytes())


for demanded in TIERS:
    verifier = PolicyBuilder().store(Store(load(f"roots-{demanded}.pem"))).build_client_verifier()
    for leaf in TIERS:
        try:
            chain = verifier.verify(load(f"leaf-{leaf}.pem")[0], load(f"issuing-{leaf}.pem"))
            assert [name.value for name in chain.subjects] == ["spiffe://example.org/agent/mailer"]
            print("roots", demanded, leaf, "accept")
        except VerificationError as error:
            print("roots", demanded, leaf, "refuse", error)
