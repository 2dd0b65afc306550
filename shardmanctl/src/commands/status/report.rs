//! The result of `status`, as tables or as JSON.

use crate::table::{self, Line, Tone};
use serde::Serialize;

/// How a part of the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Level {
    #[serde(rename = "OK")]
    Ok,
    /// The placement policy stands where others show how they are.
    #[serde(rename = "CROSS")]
    Cross,
    Warning,
    Error,
}

impl Level {
    fn text(self) -> &'static str {
        match self {
            Level::Ok => "OK",
            Level::Cross => "CROSS",
            Level::Warning => "Warning",
            Level::Error => "Error",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Level::Ok | Level::Cross => Tone::Good,
            Level::Warning => Tone::Doubtful,
            Level::Error => Tone::Bad,
        }
    }
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub(super) status: Level,
    pub(super) message: String,
    pub(super) rg: String,
    pub(super) node: String,
}

impl Row {
    pub(super) fn new(status: Level, message: impl Into<String>) -> Self {
        Row { status, message: message.into(), rg: String::new(), node: String::new() }
    }

    pub(super) fn rg(mut self, rg: impl ToString) -> Self {
        self.rg = rg.to_string();
        self
    }

    pub(super) fn node(mut self, node: impl ToString) -> Self {
        self.node = node.to_string();
        self
    }
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) rows: Vec<Row>,
}

/// All tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    pub(super) sections: Vec<Section>,
}

impl Report {
    /// Number of rows of a level.
    pub(super) fn count(&self, level: Level) -> usize {
        self.sections.iter().flat_map(|section| &section.rows).filter(|row| row.status == level).count()
    }

    /// The tables.
    pub(super) fn text(&self, colours: bool) -> String {
        let table = |section: &Section| {
            let line = |row: &Row| -> (Tone, [String; 4]) {
                let cells = [row.status.text().to_owned(), row.message.clone(), row.rg.clone(), row.node.clone()];
                (row.status.tone(), cells)
            };
            let rows: Vec<_> = section.rows.iter().map(line).collect();
            let lines: Vec<Line<'_>> = rows
                .iter()
                .map(|(tone, cells)| Line { tone: *tone, cells: cells.each_ref().map(String::as_str) })
                .collect();
            table::render(&format!("== {} STATUS ==", section.name), &lines, colours)
        };
        self.sections.iter().map(table).collect()
    }
}
