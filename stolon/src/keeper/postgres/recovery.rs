//! What a recovery needs: where WAL comes from, where it ends, and the operator's command that brings a backup.

use super::conf::{Parameters, Recovery};
use model::stolon::{ArchiveRecoverySettings, FollowConfig, PitrConfig, RecoveryTargetSettings, StandbySettings};

/// How a standby of a server outside gets its WAL: as the operator wrote.
pub fn external(follow: &FollowConfig) -> Recovery {
    let StandbySettings { primary_conninfo, primary_slot_name, recovery_min_apply_delay } =
        follow.standby_settings.clone().unwrap_or_default();
    let ArchiveRecoverySettings { restore_command } = follow.archive_recovery_settings.clone().unwrap_or_default();
    Recovery { primary_conninfo, primary_slot_name, recovery_min_apply_delay, restore_command }
}

/// Parameters of a recovery that ends as a primary.
pub fn point_in_time(config: &PitrConfig) -> Parameters {
    let mut all = Parameters::new();
    let mut set = |name: &str, value: &str| {
        if !value.is_empty() {
            all.insert(name.to_owned(), value.to_owned());
        }
    };
    if let Some(archive) = &config.archive_recovery_settings {
        set("restore_command", &archive.restore_command);
    }
    match &config.recovery_target_settings {
        None => set("recovery_target_timeline", "latest"),
        Some(target) => {
            let RecoveryTargetSettings {
                recovery_target,
                recovery_target_lsn,
                recovery_target_name,
                recovery_target_time,
                recovery_target_xid,
                recovery_target_timeline,
            } = target;
            set("recovery_target", recovery_target);
            set("recovery_target_lsn", recovery_target_lsn);
            set("recovery_target_name", recovery_target_name);
            set("recovery_target_time", recovery_target_time);
            set("recovery_target_xid", recovery_target_xid);
            set("recovery_target_timeline", recovery_target_timeline);
            // PostgreSQL's default is to stop at the target and wait for somebody.
            set("recovery_target_action", "promote");
        }
    }
    all
}

/// The operator's command with `%d` (data directory), `%w` (WAL directory; empty without one) and `%%` filled in, each
/// path quoted as the place where it stands needs it. Other `%` sequences stay.
pub fn fill_in(command: &str, pgdata: &str, wal_dir: Option<&str>) -> String {
    let mut text = String::new();
    let mut place = Place::Bare;
    let mut chars = command.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('%', Some('%')) => text.push('%'),
            ('%', Some('d')) => place.push_path(&mut text, pgdata),
            ('%', Some('w')) => place.push_path(&mut text, wal_dir.unwrap_or_default()),
            ('\\', Some(&next)) if place != Place::Single => text.extend(['\\', next]),
            _ => {
                place = place.after(c);
                text.push(c);
                continue;
            }
        }
        chars.next();
    }
    text
}

/// Where in a line of shell.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Bare,
    Single,
    Double,
}

impl Place {
    fn after(self, c: char) -> Self {
        match (self, c) {
            (Place::Bare, '\'') => Place::Single,
            (Place::Bare, '"') => Place::Double,
            (Place::Single, '\'') | (Place::Double, '"') => Place::Bare,
            (place, _) => place,
        }
    }

    fn push_path(self, text: &mut String, path: &str) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%,:=".contains(c);
        if path.chars().all(plain) {
            // Right at every place, also inside of what this simple reading of the line does not see.
            text.push_str(path);
            return;
        }
        match self {
            Place::Bare => text.push_str(&format!("'{}'", path.replace('\'', r"'\''"))),
            Place::Single => text.push_str(&path.replace('\'', r"'\''")),
            Place::Double => {
                for c in path.chars() {
                    text.extend("\\\"$`".contains(c).then_some('\\'));
                    text.push(c);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn parameters_of_a_recovery() {
        let parameters = |config| point_in_time(&serde_json::from_value(config).unwrap());
        let plain = parameters(json!({"dataRestoreCommand": "x", "archiveRecoverySettings": {"restoreCommand": "cp"}}));
        let map = |pairs: &[(&str, &str)]| -> Parameters {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(plain, map(&[("restore_command", "cp"), ("recovery_target_timeline", "latest")]));
        let target =
            parameters(json!({"recoveryTargetSettings": {"recoveryTargetName": "p", "recoveryTargetTimeline": "3"}}));
        assert_eq!(
            target,
            map(&[
                ("recovery_target_name", "p"),
                ("recovery_target_timeline", "3"),
                ("recovery_target_action", "promote")
            ])
        );
    }

    #[test]
    fn standbys_of_a_server_outside() {
        let follow = json!({"type": "external", "standbySettings": {"primaryConninfo": "host=a", "recoveryMinApplyDelay": "5s"},
            "archiveRecoverySettings": {"restoreCommand": "cp"}});
        let recovery = external(&serde_json::from_value(follow).unwrap());
        assert_eq!((recovery.primary_conninfo.as_str(), recovery.restore_command.as_str()), ("host=a", "cp"));
        assert_eq!((recovery.primary_slot_name.as_str(), recovery.recovery_min_apply_delay.as_str()), ("", "5s"));
        assert_eq!(external(&FollowConfig::default()), Recovery::default());
    }

    #[test]
    fn sequences() {
        for (command, filled) in [
            ("cp -a /b/. %d", "cp -a /b/. /d/postgres"),
            ("tar -C \"%d\" %w", "tar -C \"/d/postgres\" "),
            ("date +%%Y-%%m %s %", "date +%Y-%m %s %"),
            ("%%d %%%d \\%d", "%d %/d/postgres \\%d"),
            ("", ""),
        ] {
            assert_eq!(fill_in(command, "/d/postgres", None), filled);
        }
        assert_eq!(fill_in("x %w", "/d", Some("/w")), "x /w");
    }

    #[test]
    fn the_shell_sees_the_path_itself() {
        for path in ["/d/a b", "/d/it's", "/d/$HOME`id`", "/d/\"q\"\\n", "/d/x;y&z", "/d/ü*"] {
            for (command, wanted) in [
                ("printf %%s %d", path.to_owned()),
                ("printf %%s '%d'", path.to_owned()),
                ("printf %%s \"<%d>\"", format!("<{path}>")),
                ("printf %%s \"\\\"\"%d", format!("\"{path}")),
            ] {
                let output =
                    std::process::Command::new("/bin/sh").arg("-c").arg(fill_in(command, path, None)).output().unwrap();
                assert_eq!(String::from_utf8_lossy(&output.stdout), wanted, "{command}");
            }
        }
    }

    proptest! {
        #[test]
        fn never_panics(command: String, path: String) {
            let _ = fill_in(&command, &path, Some(&path));
        }
    }
}
