use super::*;

#[test]
fn several_tpms_run_side_by_side_and_survive_reset_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let ca = SwtpmCa::new(dir.path().join("ca")).unwrap();
    let mut tpms: Vec<_> = (0..3).map(|i| Swtpm::started(&ca, &format!("t{i}")).unwrap()).collect();
    assert_eq!(3, tpms.iter().map(Swtpm::port).collect::<std::collections::BTreeSet<_>>().len());

    let tpm = &mut tpms[0];
    let resets = |tpm: &Swtpm| {
        let out = String::from_utf8(tpm.tool("tpm2_readclock", [] as [&str; 0]).unwrap()).unwrap();
        out.lines().find(|l| l.contains("reset_count")).unwrap().to_owned()
    };
    let first = resets(tpm);
    tpm.reset().unwrap();
    let second = resets(tpm);
    assert_ne!(first, second);
    let port = tpm.port();
    tpm.restart().unwrap();
    assert_ne!(second, resets(tpm));
    assert_eq!(port, tpm.port());
}

#[test]
fn ek_certificates_are_written_and_chain_to_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let ca = SwtpmCa::new(dir.path().join("ca")).unwrap();
    let tpm = Swtpm::started(&ca, "host").unwrap();
    let made = tpm.add_p256_ek(&ca, &EkProfile::default()).unwrap();
    assert_eq!(made, tpm.read_nv(NV_EK_P256).unwrap());
    for index in [NV_EK_RSA2048, NV_EK_P256, NV_EK_P384] {
        let path = tpm.scratch("ek.der", &tpm.read_nv(index).unwrap()).unwrap();
        let path = path.to_string_lossy();
        let (root, issuer) = (ca.root_path(), ca.issuer_path());
        run(Command::new("openssl")
            .args(["verify", "-ignore_critical", "-CAfile", &root.to_string_lossy()])
            .args(["-untrusted", &issuer.to_string_lossy(), &path]))
        .unwrap();
    }
    tpm.remove_nv(NV_EK_RSA2048).unwrap();
    assert!(tpm.read_nv(NV_EK_RSA2048).is_err());
}

#[test]
fn dropping_a_tpm_ends_its_process() {
    let mut tpm = Swtpm::blank().unwrap();
    tpm.start().unwrap();
    let pid = tpm.pid().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(tpm);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}
