//! The OpenAPI document, made from one table. A test holds the committed file and the router against it.

use serde_json::{Map, Value, json};

/// One endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// The method, lower case.
    pub method: &'static str,
    /// The path below `/api/v1`.
    pub path: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// The fields of the request's body, with their meaning; empty for none. A `?` marks the optional.
    pub body: &'static [(&'static str, &'static str)],
    /// The query's parameters.
    pub query: &'static [(&'static str, &'static str)],
}

macro_rules! endpoint {
    ($method:literal $path:literal $summary:literal $(body [$($body:tt)*])? $(, query [$($query:tt)*])?) => {
        Endpoint {
            method: $method,
            path: $path,
            summary: $summary,
            body: &[$($($body)*)?],
            query: &[$($($query)*)?],
        }
    };
}

/// All endpoints.
pub const ENDPOINTS: &[Endpoint] = &[
    endpoint!("get" "/status" "version, address, and how many devices and sessions there are"),
    endpoint!("get" "/doctor" "looks at everything that is known to go wrong"),
    endpoint!("get" "/forecast" "what expires when: devices by authority, batch and kind, authorities with the last time at which they can issue"
        , query [("tenant", "only of this tenant")]),
    endpoint!("post" "/backups" "makes a backup on the server's machine while all goes on; it is there whole, or not at all"
        body [("path", "absolute path of a folder to make, or of a file that ends in .tar; it must not exist"), ("with_keys?", "whether private keys are in it; default false")]),
    endpoint!("get" "/clock" "what the clock says, the newest time that is known to have been, and whether anything is minted"),
    endpoint!("post" "/clock/reset" "takes the clock's time for right although it is behind: after it had been ahead by mistake"
        body [("reason", "why, for the audit")]),
    endpoint!("get" "/tenants" "lists tenants"),
    endpoint!("post" "/tenants" "adds a tenant with an issuing authority of its own"
        body [("id", "tenant id"), ("client_id_mode?", "strict, prefix, assigned or free; default strict")]),
    endpoint!("patch" "/tenants/{tenant}" "replaces what is given of a tenant's settings, policies and topic spaces as a new version; live sessions are decided anew; policies that would lock out (nearly) everybody are refused (409); what looks wrong and takes effect all the same is told in `warnings`"
        body [("client_id_mode?", "strict, prefix, assigned or free"), ("policies?", "Cedar policies"), ("spaces?", "topic spaces: a list of {name, filter}"), ("reason?", "why, for versions and audit"), ("accept_lock_out?", "true: it need not fit the schema, and may lock out as many devices as it does; with a reason"), ("base?", "the version that it was made of; 409 if another is in force by now")]),
    endpoint!("get" "/tenants/{tenant}/policies" "the versions of a tenant's policies and topic spaces, newest first"),
    endpoint!("post" "/tenants/{tenant}/policies/simulate" "what other policies would do to connect: which active devices, and which recorded exchanges, would be locked out or newly let in, by determining policy; and which suspected clones would be quarantined; `warnings` has what looks wrong and would take effect all the same"
        body [("policies?", "Cedar policies; default: those in force"), ("spaces?", "topic spaces; default: those in force"), ("since?", "only exchanges since then, in milliseconds since 1970"), ("limit?", "the most exchanges that are replayed, newest first; default 10000, at most 100000")]),
    endpoint!("get" "/tenants/{tenant}/policies/{number}" "one version with its text; `current` is the one in force"),
    endpoint!("post" "/tenants/{tenant}/policies/{number}/revert" "takes an earlier version up again, as a new version"
        body [("reason", "why, for versions and audit"), ("accept_lock_out?", "true: it need not fit the schema, and may lock out as many devices as it does; with a reason"), ("base?", "the version that it was made of; 409 if another is in force by now")]),
    endpoint!("post" "/tenants/{tenant}/hosts" "gives a host name (SNI) to a tenant" body [("host", "host name")]),
    endpoint!("delete" "/tenants/{tenant}/hosts/{host}" "takes a host name from a tenant"),
    endpoint!("get" "/authorities" "lists the authorities that may vouch for devices"),
    endpoint!("post" "/authorities" "adds an authority; one that was brought along is unproven, and the answer has the code that the proof must name"
        body [("id", "authority id"), ("tenant", "tenant id"), ("identity_rule?", "FIELD or FIELD=PATTERN with {id}: common-name, subject-serial-number, san-uri, san-dns or hardware-module-name; default common-name"), ("admission?", "what first contacts may bring about: {mode: registered-only | known-device | just-in-time, and for the last one model?, groups?, state?, id_pattern, quota}"), ("origin?", "registered (default), managed, factory (it issues stations only), requested (the answer has a PKCS#10 for an external root) or installed"), ("certificate?", "registered: CA certificate, PEM; installed: what the external root issued, issuing CA first, root last"), ("key_store?", "managed, factory and requested: where the key is held: {store: file} (default), {store: encrypted, passphrase: /PATH or credential:NAME} or {store: pkcs11, uri}")]),
    endpoint!("patch" "/authorities/{authority}" "replaces what is given of an authority's settings; live sessions are decided anew; refused (409) if by the new rule the certificates of more known devices than may be left out do not name them"
        body [("identity_rule?", "as above"), ("admission?", "as above"), ("leave_out?", "how many known devices the rule may lock out; default 0")]),
    endpoint!("post" "/authorities/{authority}/proof" "proves possession of the authority's key"
        body [("certificate", "a certificate that the CA issued with the code as common name, PEM")]),
    endpoint!("post" "/authorities/{authority}/code" "gives an unproven authority a new code"),
    endpoint!("post" "/authorities/{authority}/moves" "rotates an authority; closing it is refused (409) while more devices depend on it than may be left out"
        body [("move", "retire, reopen, close or revoke"), ("leave_out?", "close: how many dependent devices may be locked out; default 0"), ("reason?", "why, for the audit")]),
    endpoint!("get" "/authorities/{authority}/dependents" "devices that have no other way in than this authority, and why they have not moved on"
        , query [("limit", "1 to 100000, default 100")]),
    endpoint!("get" "/authorities/{authority}/root-key" "the key of a managed authority's root, to be taken offline"),
    endpoint!("delete" "/authorities/{authority}/root-key" "deletes the key of a managed authority's root: nothing here needs it"),
    endpoint!("get" "/authorities/{authority}/revocation-list" "what is known of a registered authority's revocation lists, and whether they are stale"),
    endpoint!("put" "/authorities/{authority}/revocation-list" "sets how a registered authority's revocation lists come here, and what happens while they are stale"
        body [("source?", "an absolute path or an http URL; without: lists are uploaded"), ("interval_s", "how often the source is looked at"), ("when_stale?", "refuse (default) or last-known")]),
    endpoint!("post" "/authorities/{authority}/revocation-list" "takes revocation lists; in force when it answers, and sessions of newly revoked certificates are closed"
        body [("lists", "revocation lists, PEM: the authority's own, and those of stored intermediates below it")]),
    endpoint!("delete" "/authorities/{authority}/revocation-list" "drops a registered authority's revocation lists: it is asked for none any more"),
    endpoint!("post" "/tenants/{tenant}/intermediates" "keeps a CA certificate for devices that send only their own"
        body [("certificate", "CA certificate, PEM")]),
    endpoint!("get" "/authorities/platform" "the platform root that devices pin, PEM"),
    endpoint!("get" "/tenants/{tenant}/device-ca" "a tenant's own issuing CA and its root, PEM"),
    endpoint!("get" "/tenants/{tenant}/devices" "lists devices in order of id"
        , query [("state", "only devices in this state"), ("after", "the id after which the list goes on: `next` of the answer before"), ("limit", "1 to 1000, default 100")]),
    endpoint!("post" "/tenants/{tenant}/devices" "adds a device"
        body [("id", "device id"), ("model?", "model"), ("groups?", "list of group names"), ("state?", "pending or active; default active"), ("authority?", "the authority whose certificates may be learned for it at first contact")]),
    endpoint!("post" "/tenants/{tenant}/devices/import" "adds many devices with their certificates; safe to repeat"
        body [("devices", "list of {id, model?, groups?, state?, authority?, certificate?}; certificate is PEM")]),
    endpoint!("get" "/tenants/{tenant}/devices/{device}" "a device with its credentials and sessions"),
    endpoint!("post" "/tenants/{tenant}/devices/{device}/moves" "moves a device through its lifecycle; answers when the sessions that this ends are closed"
        body [("move", "activate, suspend, resume, quarantine, release or decommission"), ("reason?", "why, for the audit; needed for quarantine, release and decommission"), ("until?", "suspend and quarantine: when it ends by itself, milliseconds since 1970"), ("evidence?", "release: what it is based on, for the audit")]),
    endpoint!("post" "/tenants/{tenant}/bulk-moves" "moves all devices that a selector finds, in small steps; answers at once with the receipt, which tells how far it is; header Idempotency-Key: asked again, one that was cut short goes on under the same receipt"
        body [("selector", "what must all hold: {group?, model?, batch?, authority?, state?}"), ("move", "as for one device"), ("reason", "why, for the audit"), ("until?", "as for one device"), ("evidence?", "as for one device"), ("dry_run?", "true: only answers how many it would be, and the first of them"), ("after?", "dry run: the id after which the list goes on"), ("limit?", "dry run: 1 to 10000 devices in the list, default 100")]),
    endpoint!("get" "/receipts" "the newest receipts of changes that end sessions, newest first"
        , query [("tenant", "only of this tenant"), ("limit", "1 to 1000, default 100")]),
    endpoint!("get" "/receipts/{receipt}" "a receipt: what a change did to live sessions, on each node"),
    endpoint!("post" "/tenants/{tenant}/devices/{device}/certificates" "issues a certificate, or answers with the one that was issued for this key before; header Idempotency-Key: the same key with other content is refused (409)"
        body [("request", "PKCS#10, PEM"), ("profile?", "default: the first of the configuration"), ("authority?", "default: the tenant's newest active one"), ("add_device?", "true: a device that is not there is added, active, in the same transaction; the answer says so in added")]),
    endpoint!("put" "/tenants/{tenant}/devices/{device}/authority" "binds a device to the authority whose certificates may be learned for it"
        body [("authority", "authority id, or null")]),
    endpoint!("post" "/tenants/{tenant}/devices/{device}/pins" "registers a self-signed certificate for a device by its fingerprint; safe to repeat"
        body [("certificate", "self-signed certificate, PEM")]),
    endpoint!("post" "/tenants/{tenant}/devices/{device}/secrets" "makes a one-time secret with which the device enrols over EST; shown once"),
    endpoint!("post" "/tenants/{tenant}/devices/{device}/revoke" "revokes all certificates of a device; answers when the sessions that this ends are closed"
        body [("code?", "CRL reason, default unspecified"), ("reason?", "why, for the audit")]),
    endpoint!("delete" "/tenants/{tenant}/devices/{device}/sessions" "ends the sessions of a device; it may connect again at once"),
    endpoint!("get" "/tenants/{tenant}/endorsement-authorities" "lists the TPM manufacturers whose endorsement certificates a tenant trusts"),
    endpoint!("post" "/tenants/{tenant}/endorsement-authorities" "trusts a TPM manufacturer's CA"
        body [("id", "a name for it"), ("certificate", "its certificate, root or intermediate, PEM")]),
    endpoint!("delete" "/tenants/{tenant}/endorsement-authorities/{authority}" "trusts it no more; what was attested stays so"),
    endpoint!("get" "/tenants/{tenant}/devices/{device}/endorsement-keys" "lists the TPMs of a device"),
    endpoint!("post" "/tenants/{tenant}/devices/{device}/endorsement-keys" "says which device a TPM is in: attested by it, the device enrols without any other proof; safe to repeat"
        body [("key", "the endorsement key, PEM: its certificate, or the public key alone")]),
    endpoint!("delete" "/tenants/{tenant}/endorsement-keys/{fingerprint}" "forgets which device a TPM is in"),
    endpoint!("get" "/tenants/{tenant}/devices/{device}/attestations" "what the TPM of a device said of its keys, newest first: the evidence of custody `attested`"),
    endpoint!("post" "/tenants/{tenant}/devices/{device}/destruction" "records a device's own statement that its key is destroyed, for a device that cannot hand it in itself: the device is decommissioned, and that is final"
        body [("tenant", "its tenant"), ("device", "the device"), ("certificate", "the certificate of the key, DER in base64"), ("at", "when it was stated, milliseconds since 1970"), ("signature", "by that key, base64")]),
    endpoint!("get" "/tenants/{tenant}/claims" "lists claims"),
    endpoint!("post" "/tenants/{tenant}/claims" "makes a claim: one secret or certificate that enrols the devices of its list; a secret is in the answer, once"
        body [("id", "claim name"), ("allow", "which devices: {ids: [...]} or {pattern: {pattern, quota}}"), ("days", "how many days it is good, 1 to 366"), ("certificate?", "the certificate that the devices show, PEM; without it a secret is made"), ("profile?", "the only profile that it enrols by"), ("model?", "model of the devices that it brings"), ("groups?", "their groups")]),
    endpoint!("get" "/tenants/{tenant}/claims/{claim}" "a claim with everything that it minted"),
    endpoint!("post" "/tenants/{tenant}/claims/{claim}/revoke" "lets a claim enrol nobody any more; the answer lists everything that it minted"
        body [("minted?", "true: revokes everything that it minted too, and ends its sessions"), ("code?", "CRL reason for these, default unspecified"), ("reason?", "why, for the audit")]),
    endpoint!("post" "/credentials/{fingerprint}/revoke" "revokes a certificate; answers when the sessions that this ends are closed"
        body [("code?", "unspecified, key-compromise, ca-compromise, affiliation-changed, superseded, cessation-of-operation or privilege-withdrawn"), ("reason?", "why, for the audit")]),
    endpoint!("post" "/credentials/{fingerprint}/confirm" "confirms that a certificate is on its device: it will not lapse"),
    endpoint!("get" "/tenants/{tenant}/batches" "lists a tenant's batches, newest first, with how far they have come"),
    endpoint!("post" "/tenants/{tenant}/batches" "plans a batch; the same plan again changes nothing, another of that id is refused (409)"
        body [("id", "batch id"), ("model", "the model of its devices"), ("profile", "the profile of its certificates"), ("id_pattern", "which device ids fit: * for any number of characters, ? for one"), ("quota", "how many devices it may have in all"), ("groups?", "the groups of its devices"), ("devices_start?", "active (default) or pending"), ("authority?", "the authority that issues; default: the tenant's newest active one"), ("window?", "{not_before?, not_after?}: when its certificates may be signed, in milliseconds since 1970")]),
    endpoint!("post" "/tenants/{tenant}/manifests" "takes the elements of a manufacturer's signed manifest as devices; an entry that is refused does not hold up the others; safe to repeat"
        body [("entries", "the manifest's entries: list of {payload, protected, header, signature} (JWS, ES256)"), ("signer", "the certificate of whoever signed them, PEM"), ("batch?", "the batch that the devices are made in"), ("model?", "without a batch: their model"), ("identity_rule?", "where the certificate carries the device id; default: the unique id is the device id"), ("key?", "kid of the key whose certificate is taken; default: the first that has one")]),
    endpoint!("get" "/tenants/{tenant}/batches/{batch}" "a batch: its plan, its devices, its certificates by state"),
    endpoint!("post" "/tenants/{tenant}/batches/{batch}/close" "closes a batch for good; what was issued stays" body [("reason?", "why, for the audit")]),
    endpoint!("post" "/tenants/{tenant}/batches/{batch}/certificates" "makes devices with certificates, at most 1000 at once; what was issued for a key before is answered again; a device that is refused (code, reason, hint) does not hold up the others"
        body [("devices", "list of {id, request}; request is PKCS#10, PEM"), ("replace?", "true: a certificate for another key that nobody used or confirmed is revoked in favour of the new one")]),
    endpoint!("get" "/tenants/{tenant}/stations" "lists a tenant's offline factory stations, newest first"),
    endpoint!("post" "/tenants/{tenant}/stations" "grants a station so many identities of a batch; the answer has the grant file; the same again is answered with the same"
        body [("id", "station id"), ("batch", "batch id"), ("request", "station.csr, PEM"), ("quota", "how many certificates it may issue"), ("from", "start of its signing window, milliseconds since 1970"), ("to", "end of its signing window"), ("ids?", "PATTERN or FIRST..LAST; default: the batch's"), ("authority?", "default: the tenant's newest factory CA"), ("overlap?", "refused (default): no id may be granted that is taken or that another open grant has; or allowed")]),
    endpoint!("get" "/tenants/{tenant}/stations/{station}" "a station: its terms, and how far it has come"),
    endpoint!("get" "/tenants/{tenant}/stations/{station}/grant" "the station's grant file, as it was given"),
    endpoint!("post" "/tenants/{tenant}/stations/{station}/revoke" "refuses for good what the station has not accounted for yet; answers when the sessions that this ends are closed"
        body [("with_devices?", "whether the certificates that were accepted from it are revoked too; default false"), ("code?", "CRLReason, such as key-compromise"), ("reason?", "why, for the audit")]),
    endpoint!("post" "/journals" "reconciles a station's journal: registers what keeps its terms, and reports the rest, each with a code; safe to repeat"
        body [("journal", "what countersign-station export wrote"), ("salvaged?", "whether it may end anywhere: what is left of a station that cannot export any more; default false")]),
    endpoint!("post" "/tenants/{tenant}/batches/{batch}/confirm" "confirms that certificates are on their devices: they will not lapse"
        body [("fingerprints?", "list of certificate fingerprints"), ("devices?", "list of device ids: the newest certificate that the batch issued to each")]),
    endpoint!("post" "/tenants/{tenant}/batches/{batch}/revoke" "revokes all certificates that were issued in a batch; answers when the sessions that this ends are closed"
        body [("code?", "CRL reason, default unspecified"), ("reason?", "why, for the audit")]),
    endpoint!("get" "/services" "lists services: backends of the fleet that may ask about tokens"),
    endpoint!("post" "/services" "registers a service by its certificate, which must not be a device's"
        body [("id", "service id"), ("certificate", "the certificate it shows, PEM; whoever issued it"), ("introspects", "list of the tenants about whose tokens it may ask")]),
    endpoint!("delete" "/services/{service}" "forgets a service: its id and certificate are free again"),
    endpoint!("post" "/services/{service}/revoke" "revokes a service: it may ask nothing any more" body [("reason?", "why, for the audit")]),
    endpoint!("get" "/sessions" "lists live sessions, of connections and of tokens" , query [("tenant", "only of this tenant")]),
    endpoint!("get" "/clones" "lists the credentials that two seem to hold, the clearest first: score in thousandths, evidence, addresses" , query [("tenant", "only of this tenant")]),
    endpoint!("get" "/exchanges" "the exchanges that a subject names, or the newest, newest first"
        , query [("subject", "device id, certificate fingerprint, serial number or exchange id"), ("tenant", "tenant of the device"), ("refused", "true: only refused ones, if no subject is given"), ("limit", "1 to 1000, default 20")]),
    endpoint!("post" "/why" "every layer's verdict on an identity that is not connected: chain, dates, revocation, identify, lifecycle, credential, policy, client id, token, topic"
        body [("device?", "a registered device: each of its certificates, the one that it would come with first"), ("certificate?", "in place of a device: certificates, PEM, leaf first"), ("tenant?", "of a device: default `default`; of a certificate: default the one of its authority"), ("client_id?", "default: the device id"), ("topic?", "a topic, or with subscribe a filter"), ("action?", "publish (default) or subscribe"), ("at?", "milliseconds since 1970; default now"), ("source?", "the address it comes from; default: as last time")]),
    endpoint!("get" "/rejections" "refusals grouped by cause, the most frequent first, with counts, an example and a cure"
        , query [("since", "counted since the beginning of this hour: RFC 3339 or milliseconds since 1970; default: all that is kept"), ("tenant", "only of this tenant"), ("code", "only with this code"), ("after", "the `next` of the page before"), ("limit", "1 to 1000, default 100")]),
    endpoint!("get" "/rejections/exchanges" "refused exchanges, newest first; what is given must all hold"
        , query [("serial", "serial number of the certificate that was shown, hex"), ("fingerprint", "fingerprint of the certificate that was shown"), ("source", "address, or network such as 192.0.2.0/24"), ("code", "code of the denial"), ("device", "device that proved its key"), ("tenant", "only of this tenant"), ("since", "RFC 3339 or milliseconds since 1970"), ("before", "the `next` of the page before"), ("limit", "1 to 1000, default 100")]),
    endpoint!("get" "/tenants/{tenant}/devices/{device}/exposure" "what a device did between two moments: sessions, topics published to and received from, exchanges, and what may be missing"
        , query [("from", "RFC 3339 or milliseconds since 1970"), ("to", "the same")]),
    endpoint!("get" "/audit" "the newest 200 audit entries, newest first"),
    endpoint!("post" "/server-certificate/reload" "loads the server certificate and serves it from now on"),
];

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for e in ENDPOINTS {
        let in_path = e
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let mut parameters: Vec<Value> = in_path
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        parameters.extend(e.query.iter().map(|(name, description)| {
            json!({ "name": name, "in": "query", "required": false, "description": description, "schema": { "type": "string" } })
        }));
        let mut operation = json!({
            "summary": e.summary,
            "operationId": format!("{}{}", e.method, e.path.replace(['/', '{', '}', '-'], "_")),
            "parameters": parameters,
            "responses": {
                "200": { "description": "done", "content": { "application/json": {} } },
                "default": { "description": "a problem (RFC 9457), with `hint`", "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } } },
            },
        });
        if !e.body.is_empty() {
            let properties: Map<String, Value> = e
                .body
                .iter()
                .map(|(name, description)| {
                    (
                        name.trim_end_matches('?').to_owned(),
                        json!({ "description": description }),
                    )
                })
                .collect();
            let required: Vec<_> = e
                .body
                .iter()
                .map(|(name, _)| *name)
                .filter(|n| !n.ends_with('?'))
                .collect();
            operation["requestBody"] = json!({
                "required": true,
                "content": { "application/json": { "schema": { "type": "object", "properties": properties, "required": required, "additionalProperties": false } } },
            });
        }
        let entry = paths.entry(e.path.to_owned()).or_insert_with(|| json!({}));
        entry[e.method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Countersign admin API", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "Apache-2.0 OR MIT" } },
        "servers": [{ "url": "http://127.0.0.1:9080/api/v1" }],
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer", "description": "the file admin.token of the data directory" } },
            "schemas": { "Problem": { "type": "object", "properties": {
                "type": { "type": "string" }, "title": { "type": "string" }, "status": { "type": "integer" },
                "detail": { "type": "string" }, "hint": { "type": ["string", "null"] },
            } } },
        },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::{ENDPOINTS, document};
    use crate::api::{Token, router};
    use crate::config::Config;
    use crate::service::Service;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/countersign.json");

    /// `COUNTERSIGN_BLESS=1` writes the file.
    #[test]
    fn the_committed_document_is_what_the_code_says() {
        let text = format!("{:#}\n", document());
        if std::env::var_os("COUNTERSIGN_BLESS").is_some() {
            std::fs::write(FILE, &text).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(FILE).unwrap(),
            text,
            "COUNTERSIGN_BLESS=1 cargo test writes it"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_endpoint_of_the_table_is_routed_and_guarded() {
        let folder = tempfile::tempdir().unwrap();
        let service = Arc::new(Service::create(folder.path(), Config::default()).unwrap());
        let token = Token::load(folder.path()).unwrap();
        let router = router(service, token.clone());
        for e in ENDPOINTS {
            let path = e
                .path
                .replace("{tenant}", "nobody")
                .replace("{device}", "d")
                .replace("{host}", "h")
                .replace("{authority}", "a")
                .replace("{batch}", "b")
                .replace("{number}", "1")
                .replace("{claim}", "c")
                .replace("{receipt}", "rc-0000000000000000")
                .replace("{service}", "s");
            let path = format!("/api/v1{}", path.replace("{fingerprint}", &"0".repeat(64)));
            for (shown, expected_401) in [(Some(token.header()), false), (None, true)] {
                let mut request = Request::builder()
                    .method(e.method.to_uppercase().as_str())
                    .uri(&path);
                if let Some(shown) = shown {
                    request = request.header("authorization", shown);
                }
                let request = request
                    .header("content-type", "application/json")
                    .body(Body::from("{}"))
                    .unwrap();
                let answer = router.clone().oneshot(request).await.unwrap();
                let status = answer.status().as_u16();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                let text = String::from_utf8_lossy(&body);
                assert!(
                    !text.contains("no such endpoint") && status != 405,
                    "{} {path}: {status} {text}",
                    e.method
                );
                assert_eq!(status == 401, expected_401, "{} {path}: {status}", e.method);
            }
        }
    }
}
