//! init's and addnodes' work on the store, killed at every single write.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic")]

mod support;

use ladle::cluster::{Loaded, load_existing};
use ladle::register::{Outside, Step, finish, plan_step, register};
use ladle::{Context, Error, check, init};
use model::layout::Document;
use model::{Generation, NodeName};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{MemoryStore, SharedStore};
use support::*;

fn outside() -> Outside {
    Outside { force: false, now: chrono::DateTime::UNIX_EPOCH }
}

async fn memory() -> Context {
    context(Arc::new(MemoryStore::new()))
}

/// The store's part of addnodes, under the lock, as the command does it.
async fn add(ctx: &Context, nodes: &[NodeName], outside: Outside) -> Result<(), Error> {
    let lock = ctx.lock(&Told::default()).await?;
    let result = async {
        register(ctx, &lock, nodes, outside).await?;
        finish(ctx, &lock).await
    }
    .await;
    ladle::context::release(lock).await;
    result
}

async fn dump(ctx: &Context) -> BTreeMap<String, Vec<u8>> {
    let entries = ctx.store.list("").await.unwrap().entries;
    entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
}

fn shardmans(dump: &BTreeMap<String, Vec<u8>>) -> BTreeMap<&String, &Vec<u8>> {
    dump.iter().filter(|(key, _)| key.starts_with("shardman/")).collect()
}

fn assert_sound(loaded: &Loaded, before: Generation, after: Generation) {
    let current = loaded.current();
    let spec = &loaded.spec.doc;
    assert_eq!(check::check(&spec.ladle_spec, spec.cluster_spec.use_proxy, &current), Vec::<String>::new());
    // Nothing of the change is visible, or all of it.
    assert!([before, after].contains(&current.revision.generation));
}

async fn killed_at_every_write(first: &[NodeName], second: &[NodeName], death: Death) -> i64 {
    let spec = spec("", r#""UseProxy": true"#);
    let smooth = memory().await;
    make_cluster(&smooth, &spec).await;
    for nodes in [first, second] {
        add(&smooth, nodes, outside()).await.unwrap();
    }
    let wanted = dump(&smooth).await;
    for writes in 0.. {
        let ctx = memory().await;
        make_cluster(&ctx, &spec).await;
        add(&ctx, first, outside()).await.unwrap();
        let mortal: SharedStore = Mortal::new(ctx.store.clone(), writes, death);
        let died = add(&context(mortal), second, outside()).await.is_err();
        let loaded = load_existing(&ctx).await.unwrap();
        assert_sound(&loaded, Generation(1), Generation(2));
        let stolon_before = dump(&ctx).await;
        let _ = ctx.store.delete(&ctx.keys.metadata_lock()).await;
        if loaded.operation.is_some() || loaded.current().revision.generation == Generation(1) {
            add(&ctx, second, outside()).await.unwrap();
        }
        let seen = dump(&ctx).await;
        assert_eq!(shardmans(&seen), shardmans(&wanted), "killed at write {writes}");
        assert_eq!(seen.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
        // A stolon cluster that was made is never made anew: daemons may already use it.
        for (key, value) in stolon_before.iter().filter(|(key, _)| key.starts_with("stolon/")) {
            assert_eq!(&seen[key], value);
        }
        if !died {
            return writes;
        }
    }
    unreachable!()
}

#[tokio::test]
async fn addnodes_survives_death_at_every_write() {
    let (first, second) = (nodes(1, 2), nodes(3, 6));
    for death in [Death::Before, Death::After] {
        // Lock, record, four stolon clusters, documents, revision, end of the record.
        let writes = killed_at_every_write(&first, &second, death).await;
        assert!(writes >= 9, "{writes}");
    }
}

#[tokio::test]
async fn a_change_of_many_nodes_is_written_in_batches() {
    let ctx = memory().await;
    make_cluster(&ctx, &spec("", "")).await;
    let many = nodes(1, 300);
    let mortal: SharedStore = Mortal::new(ctx.store.clone(), i64::MAX, Death::Before);
    add(&context(mortal), &many, outside()).await.unwrap();
    let loaded = load_existing(&ctx).await.unwrap();
    assert_sound(&loaded, Generation(1), Generation(1));
    assert_eq!((loaded.layouts.len(), loaded.clovers.len()), (300, 150));
    assert_eq!(loaded.revision.doc.clover_seq, 151);
}

#[tokio::test]
async fn death_between_batches_leaves_nothing_visible() {
    let ctx = memory().await;
    make_cluster(&ctx, &spec("", "")).await;
    let many = nodes(1, 300);
    // Lock, record, 300 stolon clusters, two of four batches.
    let mortal: SharedStore = Mortal::new(ctx.store.clone(), 304, Death::Before);
    add(&context(mortal), &many, outside()).await.unwrap_err();
    let loaded = load_existing(&ctx).await.unwrap();
    assert_eq!(loaded.layouts.len(), 240);
    assert!(loaded.current().layouts.is_empty());
    assert!(matches!(plan_step(&loaded, &many).unwrap(), Step::Register(_)));
    let other = plan_step(&loaded, &nodes(301, 302)).unwrap_err().to_string();
    assert!(other.contains("unfinished") && other.contains("fixrepgroups"), "{other}");
    let_lock_expire(&ctx).await;
    add(&ctx, &many, outside()).await.unwrap();
    assert_eq!(load_existing(&ctx).await.unwrap().current().layouts.len(), 300);
}

#[tokio::test]
async fn an_unfinished_operation_goes_on_in_its_own_order() {
    let ctx = memory().await;
    make_cluster(&ctx, &spec("", "")).await;
    let mortal: SharedStore = Mortal::new(ctx.store.clone(), 3, Death::Before);
    add(&context(mortal), &nodes(1, 4), outside()).await.unwrap_err();
    let_lock_expire(&ctx).await;
    let mut reversed = nodes(1, 4);
    reversed.reverse();
    add(&ctx, &reversed, outside()).await.unwrap();
    let loaded = load_existing(&ctx).await.unwrap();
    assert_eq!(loaded.clovers.values().next().unwrap().doc.nodes, nodes(1, 2));
    let again = add(&ctx, &nodes(1, 2), outside()).await.unwrap_err().to_string();
    assert!(again.contains("n1 is already registered"), "{again}");
}

#[tokio::test]
async fn foreign_stolon_data_is_kept_unless_forced() {
    let ctx = memory().await;
    make_cluster(&ctx, &spec("", "")).await;
    let key = "stolon/cluster/clover-1-n2/clusterdata";
    ctx.store.put(key, b"foreign", None).await.unwrap();
    let refused = add(&ctx, &nodes(1, 2), outside()).await.unwrap_err().to_string();
    assert!(refused.contains("clover-1-n2") && refused.contains("--force"), "{refused}");
    assert_eq!(ctx.store.get(key).await.unwrap().unwrap().value, b"foreign");
    assert!(load_existing(&ctx).await.unwrap().operation.is_none());
    add(&ctx, &nodes(1, 2), Outside { force: true, ..outside() }).await.unwrap();
    let data = ctx.store.get(key).await.unwrap().unwrap().value;
    model::stolon::ClusterData::parse(&data).unwrap();
}

#[tokio::test]
async fn init_survives_death_at_every_write() {
    for death in [Death::Before, Death::After] {
        for writes in 0..4 {
            let ctx = memory().await;
            let mortal: SharedStore = Mortal::new(ctx.store.clone(), writes, death);
            let run = |ctx: Context| async move {
                init::run(&ctx, &spec("", ""), init::Options::default(), &Told::default()).await
            };
            let first = run(context(mortal)).await;
            let_lock_expire(&ctx).await;
            match run(ctx.clone()).await {
                Ok(()) => assert!(first.is_err()),
                Err(error) => assert!(error.to_string().contains("exists already"), "{error}"),
            }
            assert_eq!(load_existing(&ctx).await.unwrap().revision.doc.clover_seq, 1);
        }
    }
}

#[tokio::test]
async fn init_never_takes_nodes_away() {
    let ctx = memory().await;
    let again = |yes| {
        let ctx = ctx.clone();
        async move { init::run(&ctx, &spec("", r#""UseProxy": true"#), init::Options { yes }, &Told::default()).await }
    };
    make_cluster(&ctx, &spec("", "")).await;
    assert!(again(false).await.unwrap_err().to_string().contains("--yes"));
    again(true).await.unwrap();
    assert!(load_existing(&ctx).await.unwrap().spec.doc.cluster_spec.use_proxy);
    add(&ctx, &nodes(1, 2), outside()).await.unwrap();
    let before = dump(&ctx).await;
    assert!(again(true).await.unwrap_err().to_string().contains("has nodes"));
    assert_eq!(dump(&ctx).await, before);
    ctx.store.delete(&ctx.keys.spec()).await.unwrap();
    assert!(again(true).await.unwrap_err().to_string().contains("restore etcd"));
}

#[tokio::test]
async fn numbers_are_not_used_again_after_overwriting() {
    let ctx = memory().await;
    make_cluster(&ctx, &spec("", "")).await;
    let mut revision = load_existing(&ctx).await.unwrap().revision.doc;
    revision.clover_seq = 5;
    ctx.store.put(&ctx.keys.revision(), &revision.to_bytes(), None).await.unwrap();
    init::run(&ctx, &spec("", ""), init::Options { yes: true }, &Told::default()).await.unwrap();
    assert_eq!(load_existing(&ctx).await.unwrap().revision.doc.clover_seq, 5);
}

#[tokio::test]
async fn broken_and_missing_documents_are_named() {
    let ctx = memory().await;
    let error = load_existing(&ctx).await.unwrap_err().to_string();
    assert!(error.contains("cluster c does not exist"), "{error}");
    make_cluster(&ctx, &spec("", "")).await;
    ctx.store.put("shardman/c/layout/n1", b"{", None).await.unwrap();
    let error = load_existing(&ctx).await.unwrap_err().to_string();
    assert!(error.contains("layout of n1"), "{error}");
    ctx.store.put("shardman/c/layout/n1", br#"{"FormatVersion":9}"#, None).await.unwrap();
    let error = load_existing(&ctx).await.unwrap_err().to_string();
    assert!(error.contains("format version 9"), "{error}");
    assert!(Context::new(ctx.store.clone(), "a/b", "x").is_err());
}

fn status(generation: u64) -> String {
    format!(
        r#"{{"FormatVersion":1,"Node":"n","Version":"1","Generation":{generation},"SpecRevision":9,"LastError":"","Time":"","Daemons":[]}}"#
    )
}

#[tokio::test]
async fn a_wiped_store_does_not_make_a_cluster_over_living_data() {
    let ctx = memory().await;
    let put = |node: &str, text: String| {
        let (store, key) = (ctx.store.clone(), ctx.keys.status(&node.into()));
        async move { store.put(&key, text.as_bytes(), None).await.unwrap() }
    };
    let spec = spec("", "");
    put("n1", status(0)).await;
    put("n2", status(3)).await;
    put("n3", "{".to_owned()).await;
    let told = Told::default();
    let init = || init::run(&ctx, &spec, init::Options { yes: true }, &told);
    let error = init().await.unwrap_err().to_string();
    assert!(
        error.starts_with("nodes n2, n3 still run daemons of an earlier cluster of this name; stop their"),
        "{error}"
    );
    assert!(ladle::cluster::load(&ctx.store, &ctx.keys).await.unwrap().is_none());
    put("n3", status(0)).await;
    let error = init().await.unwrap_err().to_string();
    assert!(error.starts_with("node n2 still runs") && error.contains("restore etcd"), "{error}");
    put("n2", status(0)).await;
    init().await.unwrap();
    // The bowl of a node with a past comes back only now.
    put("n2", status(3)).await;
    let error = ladle::addnodes::run(&ctx, &nodes(1, 2), &Default::default(), &told).await.unwrap_err().to_string();
    assert!(error.starts_with("node n2 still runs"), "{error}");
    assert!(load_existing(&ctx).await.unwrap().operation.is_none());
}

#[tokio::test]
async fn living_keepers_of_an_earlier_group_are_never_overwritten() {
    let ctx = memory().await;
    make_cluster(&ctx, &spec("", "")).await;
    let key = "stolon/cluster/clover-1-n1/keepers/info/keeper_0";
    for record in [r#"{"uid":"keeper_0","clusterUID":"abc"}"#, "{"] {
        ctx.store.put(key, record.as_bytes(), None).await.unwrap();
        for force in [false, true] {
            let error = add(&ctx, &nodes(1, 2), Outside { force, ..outside() }).await.unwrap_err().to_string();
            assert!(error.contains("keeper keeper_0 of an earlier group clover-1-n1 still runs"), "{error}");
            assert!(ctx.store.get(key).await.unwrap().is_some());
        }
    }
    // One that waits for its first cluster has nothing to lose.
    ctx.store.put(key, br#"{"uid":"keeper_0"}"#, None).await.unwrap();
    add(&ctx, &nodes(1, 2), outside()).await.unwrap();
}
