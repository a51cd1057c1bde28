//! PKCS#11 modules: each loaded and initialised once in a process.
//!
//! Some modules learn of a token that came back only when they are initialised anew (SoftHSM reads its
//! token directory at C_Initialize and never again trusts a token whose files were gone). C_Finalize ends
//! every session of the process and must not run beside any other call (PKCS#11 §5.4), hence the *epoch*:
//! a call holds it for reading, a restart for writing, and sessions of an earlier epoch are forgotten
//! rather than closed, since their handles may name other sessions by now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as CkError, RvError};
use cryptoki::slot::{Slot, TokenInfo};

use crate::HsmError;

static LOADED: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// A module that is loaded and initialised.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) context: Pkcs11,
    pub(crate) path: PathBuf,
    /// Whether this crate initialised it, and so may finalise it.
    own: bool,
    epoch: RwLock<u64>,
    /// How many connections there are to each token, by its label.
    connected: Mutex<BTreeMap<String, usize>>,
}

impl Module {
    /// The module in this file, loaded now if it was not.
    pub(crate) fn load(path: &Path) -> Result<Arc<Self>, HsmError> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.get(&path) {
            return Ok(Arc::clone(module));
        }
        let context = Pkcs11::new(&path).map_err(|source| HsmError::Load { module: path.clone(), source })?;
        let own = match initialize(&context) {
            Ok(()) => true,
            Err(CkError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => false,
            Err(source) => return Err(HsmError::Initialize { module: path, source }),
        };
        let module = Arc::new(Self {
            context,
            path: path.clone(),
            own,
            epoch: RwLock::new(0),
            connected: Mutex::new(BTreeMap::new()),
        });
        loaded.insert(path, Arc::clone(&module));
        Ok(module)
    }

    /// To be held around every call into the module. Not to be taken twice by one thread.
    pub(crate) fn enter(&self) -> RwLockReadGuard<'_, u64> {
        self.epoch.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends `epoch` and begins another, if nobody has yet, and if no connection to a token other than
    /// `label` would be lost by it. The caller holds no epoch.
    pub(crate) fn restart(&self, epoch: u64, label: &str) -> Result<(), HsmError> {
        let mut current = self.epoch.write().unwrap_or_else(PoisonError::into_inner);
        if *current != epoch || !self.own || self.connected().keys().any(|other| other != label) {
            return Ok(());
        }
        tracing::info!(module = %self.path.display(), "initialising the PKCS#11 module anew");
        *current += 1;
        if let Err(error) = self.context.clone().finalize() {
            tracing::debug!(%error, "the PKCS#11 module did not finalise");
        }
        initialize(&self.context).map_err(|source| HsmError::Initialize { module: self.path.clone(), source })
    }

    /// A connection to the token `label` was made.
    pub(crate) fn connect(&self, label: &str) {
        *self.connected().entry(label.to_owned()).or_default() += 1;
    }

    /// A connection to the token `label` ended.
    pub(crate) fn disconnect(&self, label: &str) {
        let mut connected = self.connected();
        if let Some(count) = connected.get_mut(label) {
            *count -= 1;
            if *count == 0 {
                connected.remove(label);
            }
        }
    }

    /// The one token with this label. Slot numbers are no names: SoftHSM changes them when a token is
    /// initialised. The caller holds the epoch.
    pub(crate) fn find_token(&self, label: &str) -> Result<(Slot, TokenInfo), HsmError> {
        let call = |source| HsmError::Call { token: label.to_owned(), source };
        let mut found = Vec::new();
        let mut matching = Vec::new();
        for slot in self.context.get_slots_with_token().map_err(call)? {
            // A slot whose token was just pulled, or answers nonsense, is not the one looked for.
            let Ok(info) = self.context.get_token_info(slot) else { continue };
            if !info.token_initialized() {
                continue;
            }
            found.push(info.label().to_owned());
            if info.label() == label {
                matching.push((slot, info));
            }
        }
        if matching.len() > 1 {
            return Err(HsmError::TokenAmbiguous {
                label: label.to_owned(),
                serials: matching.iter().map(|(_, info)| info.serial_number().to_owned()).collect(),
            });
        }
        matching.pop().ok_or_else(|| HsmError::TokenNotFound {
            label: label.to_owned(),
            found,
            module: self.path.clone(),
        })
    }

    fn connected(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The module does its own locking, with the system's primitives: one context serves all threads.
fn initialize(context: &Pkcs11) -> Result<(), CkError> {
    context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
}
