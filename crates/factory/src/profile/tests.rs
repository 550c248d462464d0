use countersign_identity::{DeviceId, TenantId};
use serde_json::json;

use super::*;

/// What is wrong with a profile that is written so; empty if nothing is.
fn fault(written: serde_json::Value) -> String {
    let mut whole = json!({ "name": "p" });
    whole
        .as_object_mut()
        .unwrap()
        .extend(written.as_object().unwrap().clone());
    let profile: Profile = match serde_json::from_value(whole) {
        Ok(profile) => profile,
        Err(e) => return e.to_string(),
    };
    profile.check().err().unwrap_or_default()
}

#[test]
fn what_a_profile_cannot_say_is_refused_with_the_reason() {
    let long = "x".repeat(600);
    for (written, reason) in [
        (
            json!({ "san": ["email:{id}@example.com"] }),
            "of no kind that there is",
        ),
        (json!({ "san": ["{id}.example.com"] }), "of no kind that there is"),
        (json!({ "san": ["uri:{id}"] }), "absolute URI"),
        (json!({ "san": ["uri:urn:dev:all"] }), "{id} in it"),
        (json!({ "san": ["uri:urn:dev:{id} "] }), "absolute URI"),
        (json!({ "san": ["uri:urn:{model}:{id}"] }), "in braces"),
        (json!({ "san": ["dns:devices.example.com"] }), "{id} in it"),
        (json!({ "san": ["dns:*.{id}.example.com"] }), "host name"),
        (json!({ "san": ["dns:{id}_.example.com"] }), "host name"),
        (json!({ "san": ["dns:{id}.{model}"] }), "in braces"),
        (
            json!({ "san": ["hardware-module-name:acme"] }),
            "no object identifier",
        ),
        (json!({ "san": ["uri:urn:{id}", "uri:urn:{id}"] }), "twice"),
        (json!({ "san": vec!["uri:urn:{id}"; 9] }), "there may be 8"),
        (
            json!({ "san": ["dns:{id}.example.com"], "kind": "factory" }),
            "could stand for a server",
        ),
        (
            json!({ "san_uri": "urn:dev:{id}" }),
            r#"san = ["uri:urn:dev:{id}"]"#,
        ),
        (json!({ "san_uri": "" }), "san = []"),
        (json!({ "organization": "{model}" }), "in braces"),
        (json!({ "organizational_unit": " x" }), "white space"),
        (json!({ "organization": "a\nb" }), "no control characters"),
        (
            json!({ "crl_urls": ["ldap://pki.example.com/x"] }),
            "no URL of http",
        ),
        (json!({ "crl_urls": ["http:///x"] }), "no URL of http"),
        (
            json!({ "crl_urls": ["http://pki_.example.com/"] }),
            "no URL of http",
        ),
        (
            json!({ "crl_urls": ["http://pki.example.com:x/"] }),
            "no URL of http",
        ),
        (
            json!({ "ocsp_urls": ["http://pki.example.com/a b"] }),
            "no URL of http",
        ),
        (
            json!({ "ca_issuer_urls": ["http://pki.example.com/{id}"] }),
            "in braces",
        ),
        (json!({ "crl_urls": [format!("http://a/{long}")] }), "256"),
        (
            json!({ "extensions": [{ "oid": "x", "der": "0500" }] }),
            "no object identifier",
        ),
        (
            json!({ "extensions": [{ "oid": "1.3.6.1.4.1.99999.2", "der": "05zz" }] }),
            "not hexadecimal",
        ),
        (
            json!({ "extensions": [{ "oid": "1.3.6.1.4.1.99999.2", "der": "0501" }] }),
            "one value in DER",
        ),
        (
            json!({ "extensions": [{ "oid": "1.3.6.1.4.1.99999.2", "der": "" }] }),
            "one value in DER",
        ),
        (
            json!({ "extensions": [{ "oid": "1.3.6.1.4.1.99999.2", "der": format!("04820400{}", "00".repeat(1024)) }] }),
            "at most 1024",
        ),
        (
            json!({ "extensions": [{ "oid": "1.3.6.1.4.1.99999.2", "der": "0500", "critical": true }] }),
            "is critical",
        ),
        (
            json!({ "extensions": vec![json!({ "oid": "1.3.6.1.4.1.99999.2", "der": "0500" }); 2] }),
            "there twice",
        ),
        (json!({ "data_sessions": false }), "for factory profiles"),
    ] {
        let found = fault(written.clone());
        assert!(found.contains(reason), "{written}: {found:?}");
    }
}

#[test]
fn what_the_ca_decides_is_no_extension_of_a_profile() {
    let of_certificates = [14, 15, 17, 18, 19, 30, 31, 33, 35, 36, 37, 46, 54].map(|n| format!("2.5.29.{n}"));
    let others = ["1.3.6.1.5.5.7.1.1", "1.3.6.1.5.5.7.48.1.5"].map(str::to_owned);
    for oid in of_certificates.into_iter().chain(others) {
        let found = fault(json!({ "extensions": [{ "oid": oid, "der": "0500" }] }));
        assert!(found.contains("is decided by the CA"), "{oid}: {found:?}");
    }
    // certificatePolicies is the operator's to state.
    let policy = json!({ "extensions": [{ "oid": "2.5.29.32", "der": "300a300806062b0601040101" }] });
    assert_eq!(fault(policy), "");
}

#[test]
fn a_profile_is_written_as_it_was_read() {
    let written = json!({
        "name": "p", "kind": "factory", "lifetime_days": 0, "organization": "Acme", "organizational_unit": "{tenant}",
        "serial_number": false, "data_sessions": false,
        "san": ["uri:https://devices.example.com/{id}", "hardware-module-name:1.3.6.1.4.1.99999.1"],
        "crl_urls": ["http://[2001:db8::1]:8080/crl/{authority}.crl"],
        "ocsp_urls": ["https://pki.example.com/ocsp"], "ca_issuer_urls": ["http://192.0.2.1/ca"],
        "extensions": [{ "oid": "1.3.6.1.4.1.99999.2", "der": "0c0461636d65", "critical": false }],
    });
    assert_eq!(fault(written.clone()), "");
    let profile: Profile = serde_json::from_value(written.clone()).unwrap();
    let again = serde_json::to_value(&profile).unwrap();
    for (key, value) in written.as_object().unwrap() {
        assert_eq!(again[key], *value, "{key}");
    }
    assert!(again.get("san_uri").is_none());
    assert_eq!(serde_json::from_value::<Profile>(again).unwrap(), profile);
}

#[test]
fn a_device_that_cannot_be_named_so_is_told_why() {
    let profile = Profile {
        san: vec!["dns:{id}.example.com".parse().unwrap()],
        ..Profile::default()
    };
    let names = |profile: &Profile, id: &str| {
        let found = profile.names(&TenantId::default_tenant(), &DeviceId::new(id).unwrap());
        found.map(|_| ()).map_err(|e| e.to_string())
    };
    names(&profile, "SN-1").unwrap();
    names(&profile, "line-1.SN-1").unwrap();
    for id in ["SN_1", "SN:1", "-SN", "SN-", "SN..1", &"9".repeat(64)] {
        let fault = names(&profile, id).unwrap_err();
        assert!(
            fault.contains("no host name") && fault.contains("hint: "),
            "{fault}"
        );
    }
    // An address is no host name, whatever its letters.
    let bare = Profile {
        san: vec!["dns:{id}".parse().unwrap()],
        ..Profile::default()
    };
    assert!(names(&bare, "192.0.2.1").is_err());
    let long = Profile {
        organization: format!("{}{{id}}", "x".repeat(60)),
        ..Profile::default()
    };
    names(&long, "SN-1").unwrap();
    let fault = names(&long, "SN-12").unwrap_err();
    assert!(fault.contains("at most 64 characters"), "{fault}");
}
