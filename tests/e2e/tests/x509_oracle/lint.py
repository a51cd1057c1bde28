"""pkilint over every file: usage `lint.py KIND FILE...`, with one line of findings per file.

KIND is `cert`, `crl`, or `chain` (then files are issuer and subject in turn).
"""

import contextlib
import io
import json
import sys

from pkilint.bin import lint_crl, lint_pkix_cert, lint_pkix_signer_signee_cert_chain


def place(path):
    """The extension that a finding is about, or the last of its path."""
    return "subjectAltName" if "subjectAltName" in path else path.split(".")[-1]


kind, files = sys.argv[1], sys.argv[2:]
if kind == "cert":
    runs = [(lint_pkix_cert, ["lint"], [file]) for file in files]
elif kind == "crl":
    runs = [(lint_crl, ["lint", "-t", "CRL", "-p", "PKIX"], [file]) for file in files]
else:
    pairs = zip(files[::2], files[1::2])
    runs = [(lint_pkix_signer_signee_cert_chain, ["lint"], list(pair)) for pair in pairs]
for linter, arguments, inputs in runs:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            linter.main(arguments + ["-s", "NOTICE", "-f", "JSON"] + inputs)
        except SystemExit:
            pass
    report = json.loads(output.getvalue())
    findings = sorted(
        f"{finding['severity']} {finding['code']} {place(result['node_path'])}"
        for result in report["results"]
        for finding in result["finding_descriptions"]
    )
    print(json.dumps({"file": inputs[-1], "findings": findings}))
