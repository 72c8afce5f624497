//! The history in Clojure's notation, as Knossos and Elle read it: one map a line.
//!
//! Jepsen's processes are numbers, or `:nemesis`. A process of ours that has a name gets a number
//! above all that are used.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Kind, Operation};

/// All lines.
pub(crate) fn of(operations: &[Operation]) -> String {
    let mut names = Names::of(operations);
    let mut text = String::new();
    for operation in operations {
        line(&mut text, operation, &names.number(&operation.process));
    }
    text
}

/// Numbers for processes with names.
struct Names {
    numbers: BTreeMap<String, u64>,
    next: u64,
}

impl Names {
    fn of(operations: &[Operation]) -> Self {
        let used = operations
            .iter()
            .filter_map(|operation| operation.process.parse::<u64>().ok());
        Self {
            numbers: BTreeMap::new(),
            next: used.max().map_or(0, |highest| highest + 1),
        }
    }

    fn number(&mut self, process: &str) -> String {
        if process == "nemesis" {
            return ":nemesis".to_owned();
        }
        if process.parse::<u64>().is_ok() {
            return process.to_owned();
        }
        let next = &mut self.next;
        let number = self.numbers.entry(process.to_owned()).or_insert_with(|| {
            *next += 1;
            *next - 1
        });
        number.to_string()
    }
}

fn line(text: &mut String, operation: &Operation, process: &str) {
    let kind = match operation.kind {
        Kind::Invoke => ":invoke",
        Kind::Ok => ":ok",
        Kind::Fail => ":fail",
        Kind::Info => ":info",
    };
    let value = match operation.key.as_str() {
        "" => quoted(&operation.value),
        // As `jepsen.independent` has it.
        key => format!("[{} {}]", quoted(key), quoted(&operation.value)),
    };
    let _ = write!(
        text,
        "{{:index {}, :time {}, :process {process}, :type {kind}, :f :{}, :value {value}, :node {}",
        operation.index,
        operation.time,
        keyword(&operation.f),
        quoted(&format!("n{}", operation.node)),
    );
    if let Some(version) = operation.version {
        let _ = write!(text, ", :version {version}");
    }
    if let Some(error) = &operation.error {
        let _ = write!(text, ", :error {}", quoted(error));
    }
    text.push_str("}\n");
}

fn keyword(name: &str) -> String {
    name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-")
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Action, History};
    use super::*;

    #[test]
    fn lines_are_maps_as_jepsen_writes_them() {
        let history = History::new();
        let mut action = Action {
            process: "3".to_owned(),
            f: "write",
            key: "a\"b".to_owned(),
            value: "x".to_owned(),
            node: 2,
        };
        history.invoke(&action);
        history.add(&action, Kind::Ok, Some(7), None);
        action.process = "joiner".to_owned();
        action.key.clear();
        history.add(&action, Kind::Info, None, Some("late\n".to_owned()));
        action.process = "nemesis".to_owned();
        history.add(&action, Kind::Info, None, None);
        let text = of(&history.operations());
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains(":process 3, :type :invoke, :f :write, :value [\"a\\\"b\" \"x\"]")
        );
        assert!(lines[1].ends_with(":node \"n2\", :version 7}"));
        assert!(lines[2].contains(":process 4, :type :info"));
        assert!(lines[2].contains(":error \"late\\n\""));
        assert!(lines[3].contains(":process :nemesis"));
    }
}
