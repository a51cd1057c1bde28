//! What a listener on the bus sees, and what happens when the state changes under a quote.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/bus.rs"]
mod wire;

use common::{Rig, sha256, verify};
use hallmark_tpm::{EkAlgorithm, HOST, KeySpec, Tpm, TpmConfig, TpmError};
use wire::{Bus, Message};

const CC_ACTIVATE_CREDENTIAL: u32 = 0x147;
const CC_CREATE: u32 = 0x153;
const CC_QUOTE: u32 = 0x158;
const CC_POLICY_PCR: u32 = 0x17f;

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn an_activated_secret_never_crosses_the_bus_in_clear() {
    let rig = Rig::new();
    for ek in [EkAlgorithm::Rsa2048, EkAlgorithm::EccP384, EkAlgorithm::EccP256] {
        let bus = Bus::listen(rig.swtpm.port(), |_, _| ());
        let tpm = Tpm::open(TpmConfig { tcti: bus.tcti(), ek: Some(ek), ..rig.config() }).await.unwrap();
        let host = tpm.identity().await.unwrap();
        let secret: [u8; 32] = rand::random();
        let (id_object, encrypted) = rig.credential_for(&host, &secret);
        assert_eq!(secret, tpm.activate_credential(&id_object, &encrypted).await.unwrap()[..]);
        drop(tpm);

        let log = bus.log.lock().unwrap();
        let activated: Vec<_> = log.iter().filter(|m| m.code() == CC_ACTIVATE_CREDENTIAL).collect();
        // The first may be answered TPM_RC_RETRY, and is then sent again.
        assert_eq!([0; 4], activated.last().unwrap().answer[6..10], "TPM_RC_SUCCESS");
        for message in log.iter() {
            assert!(!contains(&message.command, &secret[..16]) && !contains(&message.answer, &secret[..16]));
            assert!(!contains(&message.command, &secret[16..]) && !contains(&message.answer, &secret[16..]));
        }
    }
}

/// The listener is able to see a secret where one does travel in clear: the test above would notice.
#[tokio::test]
async fn the_listener_sees_what_is_in_clear() {
    let rig = Rig::new();
    let bus = Bus::listen(rig.swtpm.port(), |_, _| ());
    let tpm = Tpm::open(TpmConfig { tcti: bus.tcti(), ..rig.config() }).await.unwrap();
    let nonce: [u8; 32] = rand::random();
    tpm.quote(nonce, &[0]).await.unwrap();
    let log = bus.log.lock().unwrap();
    let quote = log.iter().find(|m| m.code() == CC_QUOTE).unwrap();
    assert!(contains(&quote.command, &nonce) && contains(&quote.answer, &nonce));
}

#[tokio::test]
async fn a_hierarchys_authorisation_never_crosses_the_bus() {
    let rig = Rig::new();
    rig.swtpm.tool("tpm2_changeauth", ["-c", "e", "a-secret-of-the-owner"]).unwrap();
    rig.swtpm.tool("tpm2_changeauth", ["-c", "o", "a-secret-of-the-owner"]).unwrap();
    let bus = Bus::listen(rig.swtpm.port(), |_, _| ());
    let auth = zeroize::Zeroizing::new(b"a-secret-of-the-owner".to_vec());
    let mut config = TpmConfig { tcti: bus.tcti(), ek: Some(EkAlgorithm::Rsa2048), ..rig.config() };
    (config.endorsement_auth, config.owner_auth) = (auth.clone(), auth.clone());
    let tpm = Tpm::open(config).await.unwrap();
    let host = tpm.identity().await.unwrap();
    let (id_object, encrypted) = rig.credential_for(&host, &[5; 32]);
    tpm.activate_credential(&id_object, &encrypted).await.unwrap();
    assert!(bus.log.lock().unwrap().iter().all(|message| !contains(&message.command, &auth)));
}

/// Someone on the bus who swaps the template of a new key for one that could leave the TPM.
#[tokio::test]
async fn a_key_is_created_under_a_session_that_protects_the_command() {
    let rig = Rig::new();
    let bus = Bus::listen(rig.swtpm.port(), |_, _| ());
    let tpm = Tpm::open(TpmConfig { tcti: bus.tcti(), ..rig.config() }).await.unwrap();
    tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    let replay = {
        let log = bus.log.lock().unwrap();
        let create = log.iter().find(|m| m.code() == CC_CREATE).unwrap();
        // Parent handle, authorisation size, session handle: an HMAC session and not TPM_RS_PW.
        assert_eq!(0x02, create.command[18], "{:02x?}", &create.command[10..24]);
        create.command.clone()
    };
    assert!(!contains(&replay, &0x4000_0009u32.to_be_bytes()));
}

/// TPM2_PCR_Extend with an empty authorisation.
fn extend(pcr: u8) -> Vec<u8> {
    let mut command = vec![0x80, 0x02, 0, 0, 0, 0, 0, 0, 0x01, 0x82, 0, 0, 0, pcr];
    command.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    command.extend([0, 0, 0, 1, 0, 0x0b]);
    command.extend([0x42; 32]);
    let size = u32::try_from(command.len()).unwrap();
    command[2..6].copy_from_slice(&size.to_be_bytes());
    command
}

/// Extends a PCR after each of the first so many commands of a kind.
#[allow(clippy::type_complexity)]
fn disturbing(code: u32, pcr: u8, times: usize) -> impl FnMut(&Message, &dyn Fn(&[u8])) + Send + 'static {
    let mut left = times;
    move |message, send| {
        if message.code() == code && left > 0 {
            left -= 1;
            send(&extend(pcr));
        }
    }
}

#[tokio::test]
async fn a_quote_is_repeated_until_the_values_are_the_quoted_ones() {
    let rig = Rig::new();
    let bus = Bus::listen(rig.swtpm.port(), disturbing(CC_QUOTE, 16, 3));
    let tpm = Tpm::open(TpmConfig { tcti: bus.tcti(), ..rig.config() }).await.unwrap();
    let quote = tpm.quote([1; 32], &[7, 16]).await.unwrap();
    let values: Vec<u8> = quote.pcrs.iter().flat_map(|p| p.1).collect();
    assert!(quote.attest.ends_with(&sha256(&values)));
    assert_eq!(4, bus.log.lock().unwrap().iter().filter(|m| m.code() == CC_QUOTE).count());
    assert_ne!([0; 32], quote.pcrs[1].1, "it was extended");
}

#[tokio::test]
async fn pcrs_that_never_hold_still_are_given_up() {
    let rig = Rig::new();
    let bus = Bus::listen(rig.swtpm.port(), disturbing(CC_QUOTE, 16, usize::MAX));
    let tpm = Tpm::open(TpmConfig { tcti: bus.tcti(), ..rig.config() }).await.unwrap();
    assert!(matches!(tpm.quote([1; 32], &[16]).await, Err(TpmError::PcrsUnstable { attempts: 8 })));
    tpm.quote([1; 32], &[0, 7]).await.unwrap();
}

/// PCR 10 is where the kernel measures files; it changes at any time, and has nothing to do with a key bound to PCR 7.
#[tokio::test]
async fn a_bound_key_signs_although_other_pcrs_change_meanwhile() {
    let rig = Rig::new();
    // The first is the trial session in which the policy is computed.
    let bus = Bus::listen(rig.swtpm.port(), disturbing(CC_POLICY_PCR, 10, 3));
    let tpm = Tpm::open(TpmConfig { tcti: bus.tcti(), ..rig.config() }).await.unwrap();
    let key = tpm.create_key(&KeySpec { policy_pcrs: vec![7] }, HOST).await.unwrap();
    verify(&key, b"m", &tpm.sign(&key, sha256(b"m"), 1).await.unwrap());
    assert_eq!(4, bus.log.lock().unwrap().iter().filter(|m| m.code() == CC_POLICY_PCR).count());

    let bus = Bus::listen(rig.swtpm.port(), disturbing(CC_POLICY_PCR, 10, usize::MAX));
    drop(tpm);
    let tpm = Tpm::open(TpmConfig { tcti: bus.tcti(), ..rig.config() }).await.unwrap();
    assert!(matches!(tpm.sign(&key, [0; 32], 1).await, Err(TpmError::PcrsUnstable { attempts: 8 })));
    assert_eq!(0, tpm.health().await.unwrap().loaded_sessions);
}
