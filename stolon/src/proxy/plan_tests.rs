use super::*;
use model::stolon::DataError;
use serde_json::json;
use store::Moment;

const SECOND: Duration = Duration::from_secs(1);
const LEASE: LeaseId = LeaseId(7);
const OTHER: LeaseId = LeaseId(8);

fn document(proxy: serde_json::Value, spec: serde_json::Value) -> Result<ClusterData, DataError> {
    let mut data = json!({"formatVersion": 1, "cluster": {"spec": {"initMode": "new"}, "status": {"phase": "initializing"}},
        "keepers": {"k": {"uid": "k"}, "l": {"uid": "l"}},
        "dbs": {"a": {"uid": "a", "spec": {"keeperUID": "k", "role": "master"}, "status": {"listenAddress": "10.0.0.1", "port": "5442"}},
                "b": {"uid": "b", "spec": {"keeperUID": "l", "role": "master"}}}});
    data["proxy"] = proxy;
    for (name, value) in spec.as_object().unwrap() {
        data["cluster"]["spec"][name] = value.clone();
    }
    ClusterData::parse(data.to_string().as_bytes())
}

fn read(proxy: serde_json::Value) -> Orders {
    orders(&document(proxy, json!({})).unwrap(), &"me".into())
}

fn endpoint(host: &str) -> Endpoint {
    Endpoint { host: host.into(), port: 5442 }
}

fn destination(host: &str) -> Destination {
    Destination { endpoint: endpoint(host), addresses: Arc::new(vec!["10.0.0.1:5442".parse().unwrap()]) }
}

#[test]
fn orders_are_what_the_cluster_data_says() {
    let proxy = |master: &str, enabled: &[&str]| {
        read(json!({"generation": 3, "spec": {"masterDbUid": master, "enabledProxies": enabled}}))
    };
    assert_eq!(
        proxy("a", &["me", "other"]),
        Orders { generation: 3, master: Master::At(endpoint("10.0.0.1")), enabled: true, proxy_timeout: 15 * SECOND }
    );
    assert!(!proxy("a", &["other"]).enabled);
    assert_eq!(proxy("", &["me"]).master, Master::None);
    assert_eq!(proxy("gone", &["me"]).master, Master::None);
    assert_eq!(proxy("b", &["me"]).master, Master::NoAddress);
    assert_eq!(read(json!(null)).generation, 0);
    let short = document(json!({}), json!({"proxyTimeout": "3s", "proxyCheckInterval": "1s"})).unwrap();
    assert_eq!(orders(&short, &"me".into()).proxy_timeout, 3 * SECOND);
}

#[test]
fn targets_follow_from_orders() {
    let orders = |master, enabled| Document::Orders(Orders { generation: 3, master, enabled, proxy_timeout: SECOND });
    let here = || Master::At(endpoint("h"));
    let known = destination("h");
    let other = destination("other");
    for (document, resolved, publish, forwards, reason) in [
        (Document::Unread, None, None, false, Reason::Unread),
        (Document::Absent, Some(&known), None, false, Reason::NoData),
        (Document::Unusable, Some(&known), None, false, Reason::UnusableData),
        (orders(Master::None, true), Some(&known), Some(3), false, Reason::NoMaster),
        (orders(Master::Switching, true), Some(&known), Some(3), false, Reason::Switching),
        (orders(Master::NoAddress, true), Some(&known), None, false, Reason::NoAddress),
        (orders(here(), true), None, None, false, Reason::Unresolved),
        (orders(here(), true), Some(&other), None, false, Reason::Unresolved),
        (orders(here(), false), Some(&known), Some(3), false, Reason::NotEnabled),
        (orders(here(), true), Some(&known), Some(3), true, Reason::Ready),
    ] {
        let destination = forwards.then(|| known.clone());
        assert_eq!(target(&document, resolved), Target { publish, destination, reason });
    }
}

#[test]
fn a_lease_outlives_the_timeout() {
    for (proxy_timeout, own, ttl) in [
        (0, 1500, 2),
        (200, 1500, 2),
        (1500, 1500, 2),
        (1501, 1501, 3),
        (5000, 5000, 6),
        (15_000, 15_000, 16),
        (15_500, 15_500, 16),
        (u64::MAX, 86_400_000, 86_401),
    ] {
        let timing = Timing::new(Duration::from_millis(proxy_timeout));
        assert_eq!(timing, Timing { own: Duration::from_millis(own), ttl: ttl * SECOND }, "{proxy_timeout}");
        assert!(timing.own + MARGIN <= timing.ttl);
    }
}

#[test]
fn the_announced_timeout_never_falls_short() {
    assert_eq!(announced(5 * SECOND, 5 * SECOND), LEAST_ANNOUNCED);
    assert_eq!(announced(600 * SECOND, 5 * SECOND), 600 * SECOND);
    assert_eq!(announced(5 * SECOND, 600 * SECOND), 600 * SECOND);
    // What a Go sentinel waits for must last until long after the republication.
    assert!(2 * announced(Duration::ZERO, Duration::ZERO) >= 2 * REPUBLISH);
}

/// A proxy in full service at a given moment after the start of the clock.
struct Scene {
    start: Moment,
    target: Target,
    published: Option<Published>,
    forwarding: Option<Destination>,
    revision: i64,
    lease: Option<LeaseTimes>,
    next_lease: Option<LeaseTimes>,
    next_tried: Option<LeaseId>,
    unusable_since: Option<Moment>,
    timing: Timing,
    listening: bool,
    stop_listening: bool,
    publishing: bool,
    retry_at: Option<Moment>,
}

impl Scene {
    fn serving() -> Self {
        let start = Moment::now();
        let timing = Timing::new(15 * SECOND);
        let order = Order { generation: 3, revision: 100, lease: LEASE, ttl: 16 * SECOND, announced: LEAST_ANNOUNCED };
        Scene {
            start,
            target: Target { publish: Some(3), destination: Some(destination("h")), reason: Reason::Ready },
            published: Some(Published { order, sent: start }),
            forwarding: Some(destination("h")),
            revision: 100,
            lease: Some(LeaseTimes { id: Some(LEASE), alive_until: start + 16 * SECOND, timing }),
            next_lease: None,
            next_tried: None,
            unusable_since: None,
            timing,
            listening: true,
            stop_listening: true,
            publishing: false,
            retry_at: None,
        }
    }

    fn change(mut self, change: impl FnOnce(&mut Scene)) -> Self {
        change(&mut self);
        self
    }

    fn step(&self, after: Duration) -> Step {
        next_step(&self.facts(after))
    }

    fn facts(&self, after: Duration) -> Facts<'_> {
        Facts {
            now: self.start + after,
            target: &self.target,
            revision: self.revision,
            unusable_since: self.unusable_since,
            timing: self.timing,
            lease: self.lease,
            next_lease: self.next_lease,
            next_tried: self.next_tried,
            listening: self.listening,
            stop_listening: self.stop_listening,
            forwarding: self.forwarding.as_ref(),
            published: self.published.as_ref(),
            publishing: self.publishing,
            retry_at: self.retry_at,
        }
    }
}

fn nowhere(publish: Option<i64>, reason: Reason) -> Target {
    Target { publish, destination: None, reason }
}

#[test]
fn in_service_it_waits_and_wakes_for_the_gate() {
    let scene = Scene::serving();
    assert_eq!(scene.step(SECOND), Step::Wait(scene.start + 6 * SECOND));
    // The cluster data's revision alone is no reason to publish.
    let scene = Scene::serving().change(|s| s.revision = 101);
    assert!(matches!(scene.step(SECOND), Step::Wait(_)));
}

#[test]
fn closing_comes_before_publishing() {
    let scene = Scene::serving().change(|s| {
        s.target = nowhere(Some(4), Reason::NoMaster);
        s.revision = 101;
    });
    assert_eq!(scene.step(SECOND), Step::Cut(Reason::NoMaster));
    let scene = scene.change(|s| {
        s.forwarding = None;
        s.published = None;
    });
    let Step::Publish(order) = scene.step(SECOND) else { panic!("{:?}", scene.step(SECOND)) };
    assert_eq!((order.generation, order.revision, order.lease), (4, 101, LEASE));
    let waiting = scene.change(|s| s.publishing = true);
    assert!(matches!(waiting.step(SECOND), Step::Wait(_)));
}

#[test]
fn another_address_and_a_lost_permission_cut() {
    let scene = Scene::serving().change(|s| s.target.destination = Some(destination("i")));
    assert_eq!(scene.step(SECOND), Step::Cut(Reason::MasterMoved));
    let scene = Scene::serving().change(|s| s.target = nowhere(Some(4), Reason::NotEnabled));
    assert_eq!(scene.step(SECOND), Step::Cut(Reason::NotEnabled));
    for reason in [Reason::NoData, Reason::UnusableData, Reason::NoAddress, Reason::Unresolved] {
        let scene = Scene::serving().change(|s| s.target = nowhere(None, reason.clone()));
        assert_eq!(scene.step(SECOND), Step::Cut(reason));
    }
}

#[test]
fn a_new_generation_with_the_same_master_is_published_without_a_cut() {
    let scene = Scene::serving().change(|s| {
        s.target.publish = Some(5);
        s.revision = 102;
    });
    assert!(matches!(scene.step(SECOND), Step::Publish(order) if order.generation == 5));
}

#[test]
fn forwarding_needs_a_publication_of_the_very_revision() {
    let ready = || Scene::serving().change(|s| s.forwarding = None);
    assert_eq!(ready().step(SECOND), Step::Forward(destination("h")));
    let unpublished = ready().change(|s| s.published = None);
    assert!(matches!(unpublished.step(SECOND), Step::Publish(_)));
    let older = ready().change(|s| s.revision = 101);
    assert!(matches!(older.step(SECOND), Step::Publish(order) if order.revision == 101));
    let failed = older.change(|s| s.retry_at = Some(s.start + 2 * SECOND));
    assert_eq!(failed.step(SECOND), Step::Wait(failed.start + 2 * SECOND));
    let other_lease = ready().change(|s| s.lease.as_mut().unwrap().id = Some(OTHER));
    assert!(matches!(other_lease.step(SECOND), Step::Publish(order) if order.lease == OTHER));
    let deaf = ready().change(|s| s.listening = false);
    assert_eq!(deaf.step(SECOND), Step::Listen);
}

#[test]
fn silence_cuts_by_the_own_timeout_then_stops_listening() {
    let scene = Scene::serving().change(|s| s.published.as_mut().unwrap().sent += 10 * SECOND);
    assert!(matches!(scene.step(15 * SECOND - Duration::from_millis(1)), Step::Wait(_)));
    assert_eq!(scene.step(15 * SECOND), Step::Cut(Reason::StoreSilent));
    // A process that slept for an hour does the same first thing.
    assert_eq!(scene.step(3600 * SECOND), Step::Cut(Reason::StoreSilent));
    let scene = scene.change(|s| {
        s.forwarding = None;
        s.published = None;
    });
    assert_eq!(scene.step(15 * SECOND), Step::StopListening);
    let open = scene.change(|s| s.stop_listening = false);
    assert!(matches!(open.step(15 * SECOND), Step::Wait(_)));
    let closed = open.change(|s| s.listening = false);
    assert!(matches!(closed.step(15 * SECOND), Step::Wait(_)));
    assert_eq!(closed.facts(14 * SECOND).reason(), Reason::Ready);
    assert_eq!(closed.facts(15 * SECOND).reason(), Reason::StoreSilent, "not what the store said before");
    let back = closed.change(|s| s.lease.as_mut().unwrap().alive_until += 16 * SECOND);
    assert_eq!(back.step(16 * SECOND), Step::Listen);
}

#[test]
fn a_lost_lease_cuts_at_once() {
    for id in [None, Some(OTHER)] {
        let scene = Scene::serving().change(|s| s.lease.as_mut().unwrap().id = id);
        assert_eq!(scene.step(SECOND), Step::Cut(Reason::StoreSilent));
    }
}

#[test]
fn records_that_cannot_be_renewed_cut_before_a_sentinel_forgets() {
    let scene = Scene::serving().change(|s| {
        s.lease.as_mut().unwrap().alive_until += 3600 * SECOND;
        s.publishing = true;
    });
    let forgotten = 2 * LEAST_ANNOUNCED;
    assert!(matches!(scene.step(forgotten - SECOND), Step::Wait(_)));
    assert_eq!(scene.step(forgotten - MARGIN), Step::Cut(Reason::StoreSilent));
}

#[test]
fn the_record_is_renewed_in_time() {
    let alive = Scene::serving().change(|s| s.lease.as_mut().unwrap().alive_until += 3600 * SECOND);
    assert!(matches!(alive.step(REPUBLISH - SECOND), Step::Wait(_)));
    assert!(matches!(alive.step(REPUBLISH), Step::Publish(_)));
}

#[test]
fn before_the_first_read_and_with_unusable_data() {
    let unread = Scene::serving().change(|s| {
        s.target = nowhere(None, Reason::Unread);
        s.lease = None;
        s.published = None;
        s.forwarding = None;
        s.listening = false;
    });
    assert!(matches!(unread.step(SECOND), Step::Wait(_)));
    let ungranted = LeaseTimes { id: None, alive_until: unread.start, timing: unread.timing };
    let unread = unread.change(|s| s.lease = Some(ungranted));
    assert_eq!(unread.facts(SECOND).reason(), Reason::Unread);
    let unusable = Scene::serving().change(|s| {
        s.target = nowhere(None, Reason::UnusableData);
        s.forwarding = None;
        s.lease.as_mut().unwrap().alive_until += 3600 * SECOND;
        s.unusable_since = Some(s.start);
    });
    assert!(matches!(unusable.step(14 * SECOND), Step::Wait(_)));
    assert_eq!(unusable.step(15 * SECOND), Step::StopListening);
}

#[test]
fn another_timeout_moves_the_record_to_another_lease() {
    let timing = Timing::new(5 * SECOND);
    let scene = Scene::serving().change(|s| {
        s.timing = timing;
        s.next_lease = Some(LeaseTimes { id: None, alive_until: s.start, timing });
    });
    assert!(matches!(scene.step(SECOND), Step::Wait(_)));
    let scene = scene.change(|s| {
        s.next_lease = Some(LeaseTimes { id: Some(OTHER), alive_until: s.start + 6 * SECOND, timing });
    });
    let Step::Publish(order) = scene.step(SECOND) else { panic!() };
    assert_eq!((order.lease, order.ttl, order.announced), (OTHER, 6 * SECOND, LEAST_ANNOUNCED));
    // From the moment it is sent the record may hang on the shorter lease.
    let scene = scene.change(|s| {
        s.next_tried = Some(OTHER);
        s.publishing = true;
    });
    assert!(matches!(scene.step(4 * SECOND), Step::Wait(_)));
    assert_eq!(scene.step(5 * SECOND), Step::Cut(Reason::StoreSilent));
    let lost = scene.change(|s| s.next_lease.as_mut().unwrap().id = None);
    assert_eq!(lost.step(2 * SECOND), Step::Cut(Reason::StoreSilent));
}

#[test]
fn silence_is_told_before_it_cuts() {
    let silence = |scene: &Scene, after: Duration| scene.facts(after).silence();
    let scene = Scene::serving();
    assert_eq!(silence(&scene, 7 * SECOND), None);
    let expected = Silence { since: scene.start, cut_at: scene.start + 15 * SECOND };
    assert_eq!(silence(&scene, 8 * SECOND), Some(expected));
    assert_eq!(silence(&scene, 15 * SECOND), Some(expected));
    let idle = Scene::serving().change(|s| s.forwarding = None);
    assert_eq!(silence(&idle, 8 * SECOND), None);
}

#[test]
fn an_older_record_entitles_as_long_as_its_lease_lives() {
    let scene = Scene::serving().change(|s| s.published = None);
    let record = Scene::serving().published.unwrap();
    let record = Published { sent: scene.start, ..record };
    assert_eq!(scene.facts(SECOND).entitled_until(&record), Some(scene.start + 15 * SECOND));
    let other = scene.change(|s| s.lease.as_mut().unwrap().id = Some(OTHER));
    assert_eq!(other.facts(SECOND).entitled_until(&record), None);
}

#[test]
fn while_the_store_is_silent_it_looks_every_second_whether_a_keep_alive_went_well() {
    let scene = Scene::serving().change(|s| {
        s.forwarding = None;
        s.published = None;
        s.listening = false;
    });
    assert_eq!(scene.step(20 * SECOND), Step::Wait(scene.start + 21 * SECOND));
}
