use super::*;
use serde_json::json;

fn parse(value: Value) -> StolonSpec {
    parse_user_spec(value).unwrap()
}

#[test]
fn unset_stays_unset_and_set_stays_set() {
    let spec =
        parse(json!({"initMode": "new", "synchronousReplication": false, "minSynchronousStandbys": 0, "pgHBA": []}));
    let value = serde_json::to_value(&spec).unwrap();
    assert_eq!(
        value,
        json!({"initMode": "new", "synchronousReplication": false, "minSynchronousStandbys": 0, "pgHBA": [],
               "additionalWalSenders": null, "additionalMasterReplicationSlots": null, "automaticPgRestart": null})
    );
}

#[test]
fn any_case_is_read() {
    let spec = parse(json!({"INITMODE": "pitr", "pitrconfig": {"DataRestoreCommand": "x"},
        "standbyConfig": {"standbySettings": {"primaryConnInfo": "host=a"}}}));
    assert_eq!(spec.init_mode, Some(InitMode::Pitr));
    assert_eq!(spec.pitr_config.unwrap().data_restore_command, "x");
    assert_eq!(spec.standby_config.unwrap().standby_settings.unwrap().primary_conninfo, "host=a");
    let both = parse(json!({"initmode": "pitr", "initMode": "new"}));
    assert_eq!(both.init_mode, Some(InitMode::New));
}

#[test]
fn every_rule_is_checked() {
    for bad in [
        json!({}),
        json!({"initMode": "new", "failInterval": "-1s"}),
        json!({"initMode": "new", "proxyCheckInterval": "15s"}),
        json!({"initMode": "new", "maxStandbys": 0}),
        json!({"initMode": "new", "maxStandbysPerSender": 0}),
        json!({"initMode": "new", "maxSynchronousStandbys": 0, "minSynchronousStandbys": 0}),
        json!({"initMode": "new", "minSynchronousStandbys": 2}),
        json!({"initMode": "new", "additionalMasterReplicationSlots": ["stolon_a"]}),
        json!({"initMode": "new", "additionalMasterReplicationSlots": ["A"]}),
        json!({"initMode": "new", "pgHBA": ["a\nb"]}),
        json!({"initMode": "new", "role": "standby", "standbyConfig": {}}),
        json!({"initMode": "existing"}),
        json!({"initMode": "pitr"}),
        json!({"initMode": "pitr", "role": "standby", "pitrConfig": {"dataRestoreCommand": "x"}}),
        json!({"initMode": "pitr", "role": "standby", "standbyConfig": {},
               "pitrConfig": {"dataRestoreCommand": "x", "recoveryTargetSettings": {}}}),
    ] {
        assert!(parse(bad.clone()).effective().is_err(), "{bad}");
    }
    assert!(parse(json!({"initMode": "new", "minSynchronousStandbys": 0})).effective().is_ok());
}

#[test]
fn out_of_range_is_refused_at_reading() {
    for bad in [
        json!({"maxStandbys": 65536}),
        json!({"maxStandbyLag": 4294967296u64}),
        json!({"maxStandbys": 1.5}),
        json!({"initMode": "never"}),
        json!({"pgParameters": {"a": 1}}),
        json!({"sleepInterval": 5}),
        json!([]),
    ] {
        assert!(parse_user_spec(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn updates_keep_their_rules() {
    let old = parse(json!({"initMode": "new"}));
    assert!(old.check_update(&parse(json!({"initMode": "new", "maxStandbys": 3}))).is_ok());
    assert!(old.check_update(&parse(json!({"initMode": "existing", "existingConfig": {"keeperUID": "a"}}))).is_err());
    assert!(old.check_update(&StolonSpec::default()).is_err());
}
