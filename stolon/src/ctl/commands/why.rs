//! `why`: reasons for the present state, from what is stored.

use super::open;
use crate::access::{self, AccessError};
use crate::cli::CommonArgs;
use crate::ctl::{ChangeError, render};
use crate::sentinel::election::leader;
use crate::sentinel::observe::{Entries, document, observe};
use crate::sentinel::plan::{Explanation, Finding, Moment, explain};
use common::cli::OutputFormat;
use common::exit::UsageError;
use model::stolon::ClusterData;
use model::stolon::ext::{Decision, History};
use model::stolon::keys::Keys;
use model::{GoTime, KeeperUid};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;
use store::SharedStore;

/// Arguments of `why`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = "\
Subjects: `master`: who is master, since when and why. `failover`: whether one is needed, and for each standby whether \
it could become master. `keeper UID` and `db UID`: one of them. Nothing: all of these.

Sentinels of this implementation keep their last 64 decisions; those of Go's sentinels are not known.")]
pub struct Args {
    /// What to explain: master, failover, keeper or db
    #[arg(value_enum)]
    pub subject: Option<Subject>,
    /// The keeper or db
    pub uid: Option<String>,
    /// Form of the output
    #[arg(short, long, visible_short_alias = 'o', value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: OutputFormat,
}

/// What to explain.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Who is master, since when and why.
    Master,
    /// Who could become master.
    Failover,
    /// One keeper.
    Keeper,
    /// One db.
    Db,
}

/// Answers: one section per subject.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// Facts, by subject.
    pub sections: Vec<Section>,
    /// What is being waited for now.
    pub waiting: Vec<Finding>,
    /// Decisions that led here, oldest first.
    pub history: Vec<Decision>,
}

/// Facts about one subject.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Section {
    /// The subject.
    pub subject: String,
    /// The facts.
    pub findings: Vec<Finding>,
}

pub(super) async fn command(common: &CommonArgs, args: &Args) -> anyhow::Result<()> {
    if matches!(args.subject, Some(Subject::Keeper | Subject::Db)) != args.uid.is_some() {
        let text = "write `why keeper UID` or `why db UID`; the other subjects take no uid";
        return Err(UsageError(text.into()).into());
    }
    let result = async {
        let (store, keys) = open(common).await?;
        anyhow::Ok(run(&store, &keys, args.subject, args.uid.as_deref()).await?)
    };
    match (result.await, args.format) {
        (Ok(answer), OutputFormat::Text) => Ok(render::print(&text(&answer))?),
        (Ok(answer), OutputFormat::Json) => Ok(render::print(&render::json(&answer))?),
        (Err(error), OutputFormat::Text) => Err(error),
        (Err(error), OutputFormat::Json) => {
            render::print(&render::json(&json!({"error": common::exit::one_line(&error)})))?;
            Err(error)
        }
    }
}

/// Explains a subject; `None`: everything.
///
/// # Errors
/// The store failed, there is no usable cluster data, or no such keeper or db.
pub async fn run(
    store: &SharedStore,
    keys: &Keys,
    subject: Option<Subject>,
    uid: Option<&str>,
) -> Result<Answer, ChangeError> {
    let listing = store.list(&format!("{}/", keys.base())).await.map_err(AccessError::from)?;
    let entries: Entries = listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
    let data = access::parse(entries.get(&keys.clusterdata()).ok_or(AccessError::Absent)?)?.data;
    answer(&data, &entries, keys, subject, uid)
}

fn answer(
    data: &ClusterData,
    entries: &Entries,
    keys: &Keys,
    subject: Option<Subject>,
    uid: Option<&str>,
) -> Result<Answer, ChangeError> {
    let now = Moment { clock: Duration::ZERO, wall: GoTime::from(chrono::Utc::now()) };
    let Explanation { failover, keepers, waiting } = explain(now, data, &observe(entries, keys, Duration::ZERO, 0));
    let history: History = document(entries, &keys.decisions()).unwrap_or_default();
    let wanted = |one| subject.is_none_or(|subject| subject == one);
    let mut sections = Vec::new();
    if wanted(Subject::Master) {
        let findings = vec![leadership(entries, keys), mastership(data, &history)];
        sections.push(Section { subject: "master".into(), findings });
    }
    if wanted(Subject::Failover) {
        sections.push(Section { subject: "failover".into(), findings: failover });
    }
    let named = uid.map(|uid| named_keeper(data, subject, uid)).transpose()?;
    for (keeper, findings) in keepers {
        let this = named.as_ref().is_some_and(|named| *named == keeper);
        if this || subject.is_none() {
            sections.push(Section { subject: format!("keeper {keeper}"), findings });
        }
    }
    let relevant = |entry: &Decision| match (subject, uid) {
        (None, _) => true,
        (Some(Subject::Master | Subject::Failover), _) => is_about_the_master(entry),
        (_, Some(uid)) => entry.text.contains(&format!("\"{uid}\"")),
        _ => false,
    };
    let history = history.entries.into_iter().filter(relevant).collect();
    Ok(Answer { sections, waiting, history })
}

fn named_keeper(data: &ClusterData, subject: Option<Subject>, uid: &str) -> Result<KeeperUid, ChangeError> {
    let refuse = |what: &str| {
        ChangeError::Refused(format!("there is no {what} \"{uid}\"; `stolonctl status` lists those there are"))
    };
    if subject == Some(Subject::Db) {
        let db = data.dbs.get(&model::DbUid::from(uid)).ok_or_else(|| refuse("db"))?;
        return Ok(db.spec.keeper_uid.clone());
    }
    let keeper = KeeperUid::from(uid);
    if data.keepers.contains_key(&keeper) { Ok(keeper) } else { Err(refuse("keeper")) }
}

fn leadership(entries: &Entries, keys: &Keys) -> Finding {
    match leader(entries, keys) {
        Some(entry) => Finding {
            code: "leader",
            problem: false,
            text: format!("sentinel {} leads", String::from_utf8_lossy(&entry.value)),
        },
        None => Finding {
            code: "no_leader",
            problem: true,
            text: "no sentinel leads: nothing is decided, nobody replaces a master that fails".into(),
        },
    }
}

fn mastership(data: &ClusterData, history: &History) -> Finding {
    let uid = &data.cluster.status.master;
    let Some(db) = data.dbs.get(uid) else {
        return Finding { code: "no_master", problem: true, text: "no master was chosen yet".into() };
    };
    let who = format!("db \"{uid}\" of keeper \"{}\" is master", db.spec.keeper_uid);
    let begins = ["new_master", "first_master", "initialized"];
    let named = format!("db \"{uid}\"");
    let mut entries = history.entries.iter().enumerate().rev();
    let begin = entries.find(|(_, entry)| begins.contains(&entry.code.as_str()) && entry.text.contains(&named));
    let text = match begin {
        None => format!("{who}; when and why is not in the history"),
        Some((index, entry)) => {
            let causes = ["master_failed", "switch_begins", "forced_election"];
            let before = history.entries[..index].iter().rev().take(5);
            let cause = before.map(|entry| entry.code.as_str()).zip(history.entries[..index].iter().rev());
            let cause = cause.into_iter().find(|(code, _)| causes.contains(code)).map(|(_, entry)| entry.text.as_str());
            let cause = cause.filter(|_| entry.code == "new_master").map(|text| format!(", because {text}"));
            format!("{who} since {}{}", entry.at.utc().format("%F %T UTC"), cause.unwrap_or_default())
        }
    };
    Finding { code: "is_master", problem: false, text }
}

fn is_about_the_master(entry: &Decision) -> bool {
    const CODES: [&str; 13] = [
        "master_failed",
        "new_master",
        "no_candidate",
        "forced_election",
        "first_master",
        "first_master_failed",
        "initialized",
        "proxies_opened",
        "switch_begins",
        "switch_abandoned",
        "request_done",
        "request_failed",
        "favourite_failed",
    ];
    CODES.contains(&entry.code.as_str())
}

fn text(answer: &Answer) -> String {
    let mut text = String::new();
    let lines = |findings: &[Finding]| -> String {
        let mark = |finding: &Finding| if finding.problem { "! " } else { "  " };
        findings.iter().map(|finding| format!("{}{} ({})\n", mark(finding), finding.text, finding.code)).collect()
    };
    for section in &answer.sections {
        text.push_str(&format!("{}:\n{}\n", section.subject, lines(&section.findings)));
    }
    if !answer.waiting.is_empty() {
        text.push_str(&format!("now:\n{}\n", lines(&answer.waiting)));
    }
    text.push_str("history:\n");
    for entry in &answer.history {
        text.push_str(&format!("  {}  {} ({})\n", entry.at.utc().format("%F %T%.3f"), entry.text, entry.code));
    }
    if answer.history.is_empty() {
        text.push_str("  nothing is recorded\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::Entry;

    fn entries(pairs: &[(String, String)]) -> Entries {
        let entry = |(key, value): &(String, String)| Entry {
            key: key.clone(),
            value: value.clone().into(),
            create_revision: 1,
            mod_revision: 1,
            lease: None,
        };
        pairs.iter().map(|pair| (pair.0.clone(), entry(pair))).collect()
    }

    #[test]
    fn answers_from_what_is_stored() {
        let data: ClusterData = serde_json::from_str(include_str!("../golden/clusterdata.json")).unwrap();
        let keys = Keys::new("p", &"c".into());
        let master = &data.cluster.status.master;
        let history = History {
            entries: [
                ("master_failed", "master db \"old\" failed: x".to_owned()),
                ("new_master", format!("db \"{master}\" becomes")),
            ]
            .map(|(code, text)| Decision { code: code.into(), text, ..Default::default() })
            .into(),
        };
        let all = entries(&[(keys.decisions(), serde_json::to_string(&history).unwrap())]);
        let answer = answer(&data, &all, &keys, Some(Subject::Master), None).unwrap();
        let codes: Vec<_> = answer.sections[0].findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, ["no_leader", "is_master"]);
        let text = text(&answer);
        assert!(text.contains("because master db \"old\" failed: x"), "{text}");
        let missing = super::answer(&data, &all, &keys, Some(Subject::Keeper), Some("nobody"));
        assert!(missing.unwrap_err().to_string().contains("there is no keeper \"nobody\""));
        let keeper = data.keepers.keys().next().unwrap();
        let one = super::answer(&data, &all, &keys, Some(Subject::Keeper), Some(keeper.as_str())).unwrap();
        assert!(one.sections[0].findings.iter().any(|finding| finding.code == "keeper_record_gone"), "{one:?}");
        // Whatever is stored, there is an answer.
        let broken = entries(&[(keys.decisions(), "{".into()), (keys.operation(), "[]".into())]);
        super::answer(&data, &broken, &keys, None, None).unwrap();
    }
}
