use countersign_gateway::Limits;

use super::*;

#[test]
fn the_file_that_init_writes_is_read_back_as_it_was_meant() {
    let config = Config::default();
    assert_eq!(
        toml::from_str::<Config>(&config.to_annotated_toml()).unwrap(),
        config
    );
    let whole = toml::to_string(&config).unwrap();
    assert_eq!(toml::from_str::<Config>(&whole).unwrap(), config);
    assert_eq!(
        config.limits.to_limits().connections_max,
        Limits::default().connections_max
    );
}

#[test]
fn two_that_ask_for_one_address_and_port_are_both_named() {
    let check = |admin: &str, a: &str, b: &str| {
        let table = |name: &str, purpose: &str, listen: &str| {
            format!("[[listeners]]\nname = \"{name}\"\npurpose = \"{purpose}\"\nlisten = \"{listen}\"\n")
        };
        let text = table("first", "devices", a) + &table("second", "enrol", b);
        let text = format!("{text}[admin]\nlisten = \"{admin}\"\n");
        toml::from_str::<Config>(&text).unwrap().check()
    };
    let admin = "127.0.0.1:9080";
    for (a, b, clash) in [
        ("10.0.0.1:1", "10.0.0.1:1", true),
        ("0.0.0.0:1", "10.0.0.1:1", true),
        ("10.0.0.1:1", "0.0.0.0:1", true),
        ("[::]:1", "[2001:db8::1]:1", true),
        ("[::]:1", "10.0.0.1:1", true),
        ("[::]:1", "0.0.0.0:1", true),
        ("[::ffff:10.0.0.1]:1", "10.0.0.1:1", true),
        ("0.0.0.0:1", "[::1]:1", false),
        ("0.0.0.0:1", "10.0.0.1:2", false),
        ("10.0.0.1:1", "10.0.0.2:1", false),
        ("10.0.0.1:0", "10.0.0.1:0", false),
        ("[::]:0", "0.0.0.0:0", false),
    ] {
        let result = check(admin, a, b);
        assert_eq!(result.is_err(), clash, "{a} {b}");
        if let Err(e) = result {
            let text = e.to_string();
            assert!(
                ["first", "second", a, b].iter().all(|part| text.contains(part)),
                "{text}"
            );
        }
    }
    for (listen, clash) in [
        ("127.0.0.1:9080", true),
        ("0.0.0.0:9080", true),
        ("[::]:9080", true),
        ("[::1]:9080", false),
        ("10.0.0.1:9080", false),
    ] {
        for (a, b, name) in [(listen, "10.0.0.1:1", "first"), ("10.0.0.1:1", listen, "second")] {
            let result = check(admin, a, b);
            assert_eq!(result.is_err(), clash, "{listen}");
            if let Err(e) = result {
                let text = e.to_string();
                assert!(
                    ["admin.listen", admin, name, listen, "hint: "]
                        .iter()
                        .all(|part| text.contains(part)),
                    "{text}"
                );
            }
        }
    }
    assert!(check("127.0.0.1:0", "127.0.0.1:0", "0.0.0.0:0").is_ok());
}

#[test]
fn unknown_keys_and_impossible_values_are_refused() {
    assert!(toml::from_str::<Config>("[server]\nlisten_on = 1").is_err());
    for (text, key) in [
        ("[admin]\nlisten = \"0.0.0.0:9080\"", "admin.listen"),
        ("listeners = []", "listeners"),
        (
            "[[listeners]]\nname = \"a\"\npurpose = \"enrol\"\nlisten = \"127.0.0.1:1\"",
            "listeners",
        ),
        (
            "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\nclient_certificate = \"optional\"",
            "listeners",
        ),
        (
            "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\nalpn = []",
            "listeners",
        ),
        (
            "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\n\
             [[listeners]]\nname = \"b\"\npurpose = \"pki\"\nlisten = \"127.0.0.1:1\"",
            "listeners",
        ),
        (
            "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\n\
             [[listeners]]\nname = \"b\"\npurpose = \"pki\"\nlisten = \"127.0.0.1:2\"\ntls_minimum = \"1.3\"",
            "listeners",
        ),
        (
            "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\nproxy_from = []",
            "listeners",
        ),
        (
            "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\n\
             [[listeners]]\nname = \"b\"\npurpose = \"enrol\"\nlisten = \"127.0.0.1:2\"\nproxy_from = [\"10.0.0.0/8\"]",
            "listeners",
        ),
        ("[clones]\nscore = 1", "clones.score"),
        ("[pki]\nnext_update_hours = 0", "pki.next_update_hours"),
        ("[pki]\nnext_update_hours = 721", "pki.next_update_hours"),
        ("[pki]\nconnections_max = 0", "pki.connections_max"),
        (
            "[pki]\nconnections_per_source_max = 0",
            "pki.connections_per_source_max",
        ),
        (
            "[issuance]\ncertificates_per_device_max = 1",
            "issuance.certificates_per_device_max",
        ),
        (
            "[limits]\nproxy_header_bytes_max = 51",
            "limits.proxy_header_bytes_max",
        ),
        (
            "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\n\
             [[listeners]]\nname = \"b\"\npurpose = \"enrol\"\nlisten = \"127.0.0.1:2\"\nresumption = true",
            "listeners",
        ),
        ("[server]\nhost_names = []", "server.host_names"),
        ("[policy]\nlock_out_percent = 101", "policy.lock_out_percent"),
        ("[server]\nhost_names = [\"*.example.com\"]", "server.host_names"),
        ("[server]\ncertificate = \"a\"", "server.certificate"),
        ("[[profiles]]\nlifetime_days = 0", "profiles"),
        ("[[profiles]]\nkeys = []", "profiles"),
        ("[[profiles]]\n[[profiles]]", "profiles"),
        ("[limits]\nhandshakes_max = 0", "limits.handshakes_max"),
        (
            "[resumption]\nticket_age_max_s = 86401",
            "resumption.ticket_age_max_s",
        ),
        ("[resumption]\nkey_rotation_s = 59", "resumption.key_rotation_s"),
        ("[resumption]\nkeys_kept = 0", "resumption.keys_kept"),
        ("[limits]\nidle_max_s = 70000", "limits.idle_max_s"),
        ("[receipts]\nkeep_max = 0", "receipts.keep_max"),
        ("[ca]\nstatus_requests_max = 0", "ca.status_requests_max"),
        ("[limits]\ntokens_max = 0", "limits.tokens_max"),
        ("[tokens]\nlifetime_s = 901", "tokens.lifetime_s"),
        ("[tokens]\nkey_days = 0", "tokens.key_days"),
        ("[tokens]\nissuer = \"http://a\"", "tokens.issuer"),
        ("[tokens]\nresources = [\"here\"]", "tokens.resources"),
        (
            "[[listeners]]\nname = \"a\"\npurpose = \"services\"\nlisten = \"127.0.0.1:1\"\nclient_certificate = \"optional\"",
            "listeners",
        ),
        (
            "[issuance]\nclock_tolerance_s = 86401",
            "issuance.clock_tolerance_s",
        ),
    ] {
        let config: Config = toml::from_str(text).unwrap();
        let message = config.check().unwrap_err().to_string();
        assert!(message.contains(key) && message.contains("hint: "), "{message}");
    }
}
