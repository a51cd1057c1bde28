//! What was measured: a table for people, JSON for machines.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

/// The keys that others read, and what they should be at most.
const TARGETS: [(&str, f64); 8] = [
    ("issuance.single.ratio", 2.0),
    ("issuance.batch64.ratio", 1.3),
    ("rss_mib.issuer_500", 40.0),
    ("rss_mib.hostd_500", 20.0),
    ("first_svid_ms.foundation_p50", 10.0),
    ("durable.extra_cpu_us", 40.0),
    ("store.lookup_10m_ms", 5.0),
    ("store.start_10m_s", 2.0),
];

/// Everything measured so far.
pub(crate) struct Report {
    table: Table,
    json: Value,
    quick: bool,
}

impl Report {
    pub(crate) fn new(quick: bool) -> Self {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(["what", "value", "unit", "beside it"]);
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        Self { table, json: Value::Object(Map::new()), quick }
    }

    /// One line of the table.
    pub(crate) fn row(&mut self, what: &str, value: f64, unit: &str, beside: &str) {
        self.table.add_row([what, &format!("{value:.2}"), unit, beside]);
    }

    /// Puts `value` at a dotted path of the JSON.
    pub(crate) fn set(&mut self, path: &str, value: impl Into<Value>) {
        let mut at = &mut self.json;
        for name in path.split('.') {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[name];
        }
        *at = value.into();
    }

    /// The number at a dotted path.
    fn number(&self, path: &str) -> Option<f64> {
        path.split('.').try_fold(&self.json, |at, name| at.get(name)).and_then(Value::as_f64)
    }

    /// The table, with the targets below it.
    pub(crate) fn table(&self) -> String {
        let mut targets = Table::new();
        targets.load_preset(presets::NOTHING).set_header(["target", "at most", "got", ""]);
        for (path, most) in TARGETS {
            if let Some(got) = self.number(path) {
                let verdict = if got <= most { "met" } else { "NOT MET" };
                targets.add_row([path, &format!("{most}"), &format!("{got:.2}"), verdict]);
            }
        }
        let mut text = format!("{}\n", self.table);
        if !targets.is_empty() {
            text.push_str(&format!("\n{targets}\n"));
        }
        if self.quick {
            text.push_str("\nA short run (--quick): coarse.\n");
        }
        text
    }

    /// The JSON: nested, and under `flat` every number once more by its dotted path.
    pub(crate) fn json(&self) -> Value {
        let mut flat = Map::new();
        flatten("", &self.json, &mut flat);
        let mut json = self.json.clone();
        json["quick"] = self.quick.into();
        json["targets"] = TARGETS
            .iter()
            .map(|(path, most)| ((*path).to_owned(), json!({ "at_most": most, "got": self.number(path) })))
            .collect::<Map<_, _>>()
            .into();
        json["flat"] = Value::Object(flat);
        json
    }
}

fn flatten(prefix: &str, value: &Value, flat: &mut Map<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&path, value, flat);
            }
        }
        other => {
            flat.insert(prefix.to_owned(), other.clone());
        }
    }
}
