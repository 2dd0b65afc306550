//! `status`: how every part of the cluster is. Collecting asks everything at once and always comes to an end;
//! evaluating and drawing are pure.

mod collect;
mod dictionary;
mod documents;
mod evaluate;
mod report;

use crate::table;
use common::cli::OutputFormat;
use common::exit::Hinted;
use model::keys::ClusterKeys;
use report::Level;
use std::io::Write;
use store::SharedStore;

/// Prints the report.
///
/// # Errors
/// A part of the cluster does not work: the report says which.
pub async fn run(
    store: SharedStore,
    keys: &ClusterKeys,
    output: OutputFormat,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let observed = collect::collect(&store, keys).await;
    let report = evaluate::evaluate(&observed);
    match output {
        OutputFormat::Text => out.write_all(report.text(table::colours()).as_bytes())?,
        OutputFormat::Json => writeln!(out, "{}", serde_json::to_string(&report)?)?,
    }
    out.flush()?;
    match report.count(Level::Error) {
        0 => Ok(()),
        count => Err(Hinted {
            message: format!("{count} of the checks failed"),
            hint: "see the lines with status Error".into(),
        }
        .into()),
    }
}
