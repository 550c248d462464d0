//! What of our own authorities anybody may ask for, kept until an authority changes: no question that costs its asker nothing
//! is answered by reading them all again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use countersign_identity::{AuthorityId, CertificateFacts, TenantId};
use countersign_registry::{Change, Registry};
use parking_lot::Mutex;

use super::Service;
use crate::failure::Failure;

/// The authorities of a tenant that we issue by.
#[derive(Debug)]
pub(super) struct OwnAuthorities {
    /// The chains of those that are still admitted, DER: each authority, and what it is under up to its root.
    pub(super) chains: Vec<Vec<u8>>,
    /// The subject of each, DER, whatever its state.
    pub(super) subjects: Vec<(AuthorityId, Vec<u8>)>,
}

/// By tenant, each with the newest change of an authority that it may know of. Only tenants that exist are asked for.
#[derive(Debug, Default)]
pub(super) struct OwnAuthoritiesKept {
    newest: Arc<AtomicU64>,
    by_tenant: Mutex<HashMap<TenantId, (u64, Arc<OwnAuthorities>)>>,
}

impl OwnAuthoritiesKept {
    /// What is kept, watching the registry's changes.
    pub(super) fn of(registry: &Registry) -> Self {
        let kept = Self::default();
        let newest = kept.newest.clone();
        registry.on_change(move |revision, changes| {
            if changes.iter().any(|c| matches!(c, Change::Authority(_))) {
                newest.store(revision, Ordering::Release);
            }
        });
        kept
    }
}

impl Service {
    /// A tenant's own authorities. The tenant must exist.
    ///
    /// # Errors
    /// [`Failure`] if one of them cannot be read.
    pub(super) fn own_authorities(&self, tenant: &TenantId) -> Result<Arc<OwnAuthorities>, Failure> {
        // Before it is read: what changes in between is read again the next time.
        let newest = self.own_kept.newest.load(Ordering::Acquire);
        // Held while it is read: those who come at the same time read it once.
        let mut by_tenant = self.own_kept.by_tenant.lock();
        if let Some((of, kept)) = by_tenant.get(tenant)
            && *of == newest
        {
            return Ok(kept.clone());
        }
        let mut own = OwnAuthorities {
            chains: Vec::new(),
            subjects: Vec::new(),
        };
        for authority in self.registry.own_authorities(Some(tenant))? {
            if authority.is_factory {
                continue;
            }
            let facts = CertificateFacts::parse(&authority.certificate)
                .map_err(|e| Failure::internal(e.to_string()))?;
            if authority.state.admits() {
                own.chains.push(authority.certificate);
                own.chains.extend(self.above(&authority.id)?);
            }
            own.subjects.push((authority.id, facts.subject_der));
        }
        let own = Arc::new(own);
        by_tenant.insert(tenant.clone(), (newest, own.clone()));
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use axum::http::Request;
    use countersign_registry::Actor;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::config::Config;
    use crate::pki;
    use crate::service::AuthorityDraft;

    fn service() -> (tempfile::TempDir, Arc<Service>) {
        let folder = tempfile::tempdir().unwrap();
        let service = Arc::new(Service::create(folder.path(), Config::default()).unwrap());
        (folder, service)
    }

    fn draft(id: &str) -> AuthorityDraft {
        AuthorityDraft {
            id: AuthorityId::new(id).unwrap(),
            tenant: TenantId::default_tenant(),
            rule: countersign_identity::IdentityRule::default(),
            admission: countersign_policy::Admission::RegisteredOnly,
            key_store: countersign_authority::KeyStore::File,
        }
    }

    /// Brought authorities that cannot even be read: whoever reads one of them fails.
    fn bring(folder: &std::path::Path, count: u32) {
        let mut db = rusqlite::Connection::open(folder.join("registry.db")).unwrap();
        let tx = db.transaction().unwrap();
        for n in 0..count {
            tx.execute(
                "INSERT INTO authorities (id, tenant, origin, state, identity_rule, certificate, fingerprint, revision, created)
                 VALUES (?, 'default', 'registered', 'no state', 'no rule', ?, ?, 0, 0)",
                rusqlite::params![format!("brought-{n}"), vec![0xff_u8; 600], n.to_be_bytes()],
            )
            .unwrap();
        }
        tx.commit().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_anybody_may_ask_reads_none_of_the_authorities_that_were_brought() {
        let (folder, service) = service();
        let tenant = TenantId::default_tenant();
        bring(folder.path(), 20_000);
        assert!(service.registry().authorities().is_err());
        let pki = pki::router(service.clone(), Duration::from_secs(3600));
        let request = Request::get("/bundle/default").body(Body::empty()).unwrap();
        let answer = pki.oneshot(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        // The platform's root, our authority and its root.
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 3, "{text}");
        assert_eq!(service.ca_certificates(&tenant).unwrap().len(), 3);
        assert!(service.bundle(&tenant).is_ok());
        let ours = service.registry().own_authorities(None).unwrap();
        assert_eq!(ours.len(), 1, "{ours:?}");
    }

    #[test]
    fn our_authorities_are_found_by_an_index() {
        let (folder, _service) = service();
        let db = rusqlite::Connection::open(folder.path().join("registry.db")).unwrap();
        for clause in ["", " AND tenant = 'default'"] {
            let explained = format!(
                "EXPLAIN QUERY PLAN SELECT id, state, origin, certificate FROM authorities WHERE origin <> 'registered'{clause} ORDER BY tenant, id"
            );
            let plan: String = db.query_row(&explained, [], |r| r.get(3)).unwrap();
            assert!(plan.contains("authorities_ours"), "{plan}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn they_are_read_once_until_an_authority_changes() {
        let (_folder, service) = service();
        let tenant = TenantId::default_tenant();
        let first = service.own_authorities(&tenant).unwrap();
        assert!(Arc::ptr_eq(&first, &service.own_authorities(&tenant).unwrap()));
        let actor = Actor("test".into());
        tokio::task::block_in_place(|| service.create_authority(&actor, draft("next"))).unwrap();
        let second = service.own_authorities(&tenant).unwrap();
        assert_eq!((first.subjects.len(), second.subjects.len()), (1, 2));
        assert_eq!((first.chains.len(), second.chains.len()), (2, 4));
        let next = AuthorityId::new("next").unwrap();
        let revoke = countersign_registry::AuthorityMove::Revoke;
        service
            .registry()
            .move_authority(actor, next, revoke, "lost".into())
            .unwrap();
        let third = service.own_authorities(&tenant).unwrap();
        assert_eq!((third.subjects.len(), third.chains.len()), (2, 2));
    }
}
