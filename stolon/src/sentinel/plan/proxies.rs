//! The fence: no proxy forwards to a new master before every proxy has left the old one.

use super::reason::list;
use super::{Planner, Reason};
use model::stolon::{ProxyAddress, ProxyInfo};
use model::{DbUid, ProxyUid};

impl Planner<'_> {
    /// Proxies that may still forward: those whose silence does not prove that they cut everything off.
    fn active(&self) -> impl Iterator<Item = &ProxyInfo> {
        let infos = self.observed.proxies.values().flatten();
        infos.filter(|info| self.memory.proxy_lives(info, self.now.clock))
    }

    pub(super) fn update_proxy_status(&mut self) {
        let address = |info: &ProxyInfo| ProxyAddress {
            listen_address: info.listen_address.clone(),
            port: info.port.clone(),
            generation: info.generation,
        };
        self.data.proxy.status = self.active().map(|info| (info.uid.clone(), address(info))).collect();
        let observed = self.observed;
        for info in observed.proxies.values().flatten() {
            if let Some(at) = self.memory.proxy_silent_at(info) {
                self.wake_at(at + std::time::Duration::from_millis(1));
            }
        }
    }

    /// Active proxies that have not applied the present generation. A record that can't be read may be that of
    /// a proxy that forwards: it never confirms, and must be removed by a person if it does not go away.
    pub(super) fn unconfirmed(&self) -> Vec<ProxyUid> {
        let generation = self.data.proxy.generation;
        let late = self.active().filter(|info| info.generation != generation).map(|info| info.uid.clone());
        let unreadable = self.observed.proxies.iter().filter(|(_, info)| info.is_none()).map(|(uid, _)| uid.clone());
        late.chain(unreadable).collect()
    }

    pub(super) fn close_proxies(&mut self) {
        if !self.data.proxy.spec.master_db_uid.is_empty() {
            self.data.proxy.spec.master_db_uid = DbUid::default();
            self.data.proxy.generation += 1;
            self.say(Reason::ProxiesClosed);
        }
    }

    pub(super) fn open_proxies(&mut self, master: &DbUid) {
        self.data.proxy.spec.master_db_uid = master.clone();
        // All of them have shown that they know this fence, so they may be enabled in the same step.
        self.data.proxy.spec.enabled_proxies = self.data.proxy.status.keys().cloned().collect();
        self.data.proxy.generation += 1;
        self.say(Reason::ProxiesOpened(master.clone()));
    }

    /// Opens closed proxies when all have confirmed and the master is ready; keeps the list of open ones.
    pub(super) fn serve_proxies(&mut self, master: &DbUid) {
        if self.data.proxy.spec.master_db_uid == *master {
            let enabled: Vec<ProxyUid> = self.data.proxy.status.keys().cloned().collect();
            if self.data.proxy.spec.enabled_proxies != enabled {
                self.say(Reason::ProxiesEnabled(enabled.len()));
                self.data.proxy.spec.enabled_proxies = enabled;
                self.data.proxy.generation += 1;
            }
            return;
        }
        // Someone else's document may still name another db, even one that is gone.
        if !self.data.proxy.spec.master_db_uid.is_empty() {
            self.close_proxies();
            return;
        }
        let missing = self.unconfirmed();
        if !missing.is_empty() {
            self.say(Reason::WaitForProxies(list(&missing)));
        } else if self.db(master).is_some_and(|db| db.converged() && db.status.healthy && db.is_master_type()) {
            self.open_proxies(master);
        } else {
            self.say(Reason::WaitForMaster(master.clone()));
        }
    }
}
