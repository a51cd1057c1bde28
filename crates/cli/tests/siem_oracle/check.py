"""Reads syslog frames (RFC 6587, octet counting) with events of OCSF or CEF from standard input, by nobody's word but
the standards': exits 1 with what is wrong. OCSF is held against the schema itself where `ocsf_json_schema` and
`jsonschema` are installed."""

import json
import re
import sys

HEADER = re.compile(
    r"<(\d{1,3})>1 (-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)) "
    r"([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) (-|\[.*?\]) (.*)",
    re.DOTALL,
)
CEF = re.compile(r"CEF:0\|" + r"((?:[^|\\]|\\[|\\])*)\|" * 6 + r"(.*)")
EXTENSION = re.compile(r"(?:^| )([A-Za-z0-9_]+)=((?:[^=\\]|\\[=\\nr])*?)(?= [A-Za-z0-9_]+=|$)")


def frames(data):
    while data:
        length, data = data.split(b" ", 1)
        length = int(length)
        assert len(data) >= length, "a frame is cut"
        yield data[:length].decode("utf-8")
        data = data[length:]


def cef(text):
    match = CEF.fullmatch(text)
    assert match, f"no CEF: {text!r}"
    assert 0 <= int(match.group(6)) <= 10, "severity"
    extension, end = match.group(7), 0
    fields = {}
    for found in EXTENSION.finditer(extension):
        assert found.start() == end, f"between fields: {extension[end:found.start()]!r}"
        assert found.group(1) not in fields, "a field twice"
        fields[found.group(1)] = re.sub(
            r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m.group(1), m.group(1)), found.group(2)
        )
        end = found.end()
    assert end == len(extension), f"after the fields: {extension[end:]!r}"
    for label in [key for key in fields if key.endswith("Label")]:
        assert label[: -len("Label")] in fields, f"{label} labels nothing"
    assert int(fields["rt"]) > 0 and fields["externalId"].endswith("/" + fields["cn1"])


def ocsf_checks():
    try:
        import jsonschema
        from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
    except ImportError as error:
        print(f"skipped: the schema itself ({error})")
        return None
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.5.0"))

    def check(event):
        name = schema.lookup_class_name_from_uid(event["class_uid"])
        jsonschema.validate(event, schema.get_class_schema(name))

    return check


def main(form):
    check = ocsf_checks() if form == "ocsf" else None
    count = 0
    for message in frames(sys.stdin.buffer.read()):
        header = HEADER.fullmatch(message)
        assert header, f"no RFC 5424: {message!r}"
        assert int(header.group(1)) in (108, 110), "priority"
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", message), "a control character"
        text = header.group(8)
        if form == "cef":
            cef(text)
        else:
            event = json.loads(text)
            assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
            if check:
                check(event)
        count += 1
    print(f"{count} events")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # whatever is wrong, the test shows it
        print(f"{type(error).__name__}: {error}")
        sys.exit(1)
