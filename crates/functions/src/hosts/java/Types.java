package geminga;

import java.lang.reflect.*;
import java.util.*;
import java.util.concurrent.CompletableFuture;

/** What a class says of its types, and the interfaces it is met by. */
final class Types {
    private Types() {}

    /** The class or interface of a name among all that a class is. */
    static Class<?> named(Class<?> type, String name) {
        for (Class<?> at = type; at != null; at = at.getSuperclass()) {
            if (at.getName().equals(name)) return at;
            for (Class<?> one : at.getInterfaces()) {
                Class<?> found = named(one, name);
                if (found != null) return found;
            }
        }
        return null;
    }

    /** What stands for a type parameter of `wanted` in `type`; Object when nobody says. */
    static Type argument(Class<?> type, Class<?> wanted, int index) {
        Type found = find(type, wanted, index);
        if (found instanceof WildcardType) found = ((WildcardType) found).getUpperBounds()[0];
        return found == null || found instanceof TypeVariable ? Object.class : found;
    }

    /** The type of the values: what a future or a Record is of. */
    static Type inside(Type type) {
        while (type instanceof ParameterizedType) {
            Class<?> raw = (Class<?>) ((ParameterizedType) type).getRawType();
            if (raw != CompletableFuture.class && !raw.getName().equals(Host.API + "Record")) break;
            type = ((ParameterizedType) type).getActualTypeArguments()[0];
            if (type instanceof WildcardType) type = ((WildcardType) type).getUpperBounds()[0];
        }
        return type instanceof TypeVariable || type == CompletableFuture.class ? Object.class : type;
    }

    /** Whether it is Pulsar's Record, or a future of one. */
    static boolean isRecord(Type type) {
        if (isFuture(type) && type instanceof ParameterizedType) type = ((ParameterizedType) type).getActualTypeArguments()[0];
        return raw(type).getName().equals(Host.API + "Record");
    }

    static boolean isFuture(Type type) {
        return raw(type) == CompletableFuture.class;
    }

    static Class<?> raw(Type type) {
        if (type instanceof Class) return (Class<?>) type;
        return type instanceof ParameterizedType ? (Class<?>) ((ParameterizedType) type).getRawType() : Object.class;
    }

    private static Type find(Type at, Class<?> wanted, int index) {
        Class<?> raw = at instanceof ParameterizedType ? (Class<?>) ((ParameterizedType) at).getRawType()
                : at instanceof Class ? (Class<?>) at : null;
        if (raw == null) return null;
        if (raw == wanted) {
            return at instanceof ParameterizedType ? ((ParameterizedType) at).getActualTypeArguments()[index] : null;
        }
        List<Type> parents = new ArrayList<>(Arrays.asList(raw.getGenericInterfaces()));
        if (raw.getGenericSuperclass() != null) parents.add(raw.getGenericSuperclass());
        for (Type parent : parents) {
            Type found = find(parent, wanted, index);
            if (found instanceof TypeVariable && at instanceof ParameterizedType) {
                TypeVariable<?>[] own = raw.getTypeParameters();
                for (int i = 0; i < own.length; i++) {
                    if (own[i].equals(found)) return ((ParameterizedType) at).getActualTypeArguments()[i];
                }
            }
            if (found != null) return found;
        }
        return null;
    }

    static Object proxy(ClassLoader loader, String type, InvocationHandler calls) throws ClassNotFoundException {
        return proxy(Class.forName(type, true, loader), calls);
    }

    static Object proxy(Class<?> type, InvocationHandler calls) {
        return Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, calls);
    }

    /** Methods that every object has; `null` for another one. */
    static Object ofObject(Object self, Method method, Object[] arguments, String shown) {
        switch (method.getName()) {
            case "toString": return method.getParameterCount() == 0 ? shown : null;
            case "hashCode": return method.getParameterCount() == 0 ? System.identityHashCode(self) : null;
            case "equals": return method.getParameterCount() == 1 && method.getDeclaringClass() == Object.class ? self == arguments[0] : null;
            default: return null;
        }
    }

    static UnsupportedOperationException notHere(Method method) {
        return new UnsupportedOperationException(method.getDeclaringClass().getSimpleName() + "." + method.getName() + " is not supported by Geminga");
    }
}
